import json
import os
import subprocess
import sys
import textwrap

import pytest

from frugalrec.errors import MissingExtraError, StorageError, require
from frugalrec.ledger import Usage
from frugalrec.runs import Observer, Run, file_hash, key_hash, write_text


def test_a_stage_is_built_once_and_again_only_when_its_key_changes(tmp_path):
    built = []

    def build(folder, meter):
        built.append(1)
        meter.add(Usage(tokens_in=7))
        (folder / "x.txt").write_text(str(len(built)))

    for key, expected in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 1}, 3)):
        with Run(tmp_path / "r") as run:
            stage = run.stage("one/two", key, build)
        assert len(built) == expected
        assert (stage.path / "x.txt").read_text() == str(expected)
        assert run.ledger.stages["one/two"].tokens_in == 7


def test_an_unfinished_stage_finds_its_work_again(tmp_path):
    def broken(folder, meter):
        (folder / "half").write_text("kept")
        raise RuntimeError("killed")

    def build(folder, meter):
        assert (folder / "half").read_text() == "kept"

    with Run(tmp_path) as run, pytest.raises(RuntimeError):
        run.stage("s", {}, broken)
    with Run(tmp_path) as run:
        assert not run.stage("s", {}, build).reused


def test_the_seconds_of_a_killed_attempt_are_part_of_the_cost(tmp_path):
    def broken(folder, meter):
        began = json.loads((folder / "attempt.json").read_text())["began"]
        (folder / "half").write_text("")
        os.utime(folder / "half", (began + 100, began + 100))  # the last sign of life
        raise RuntimeError("killed")

    with Run(tmp_path) as run, pytest.raises(RuntimeError):
        run.stage("s", {}, broken)
    with Run(tmp_path) as run:
        stage = run.stage("s", {}, lambda folder, meter: None)
    assert 100 <= stage.usage.wall_s < 110
    assert not (stage.path / "attempt.json").exists()


@pytest.mark.parametrize("instant", ["before", "between", "after"])
def test_a_kill_around_the_renames_loses_nothing(tmp_path, instant, monkeypatch):
    """The old stage is moved away, then the new one moved in: die at each of these points."""
    with Run(tmp_path) as run:
        run.stage("s", {"v": 1}, lambda folder, meter: (folder / "v").write_text("1"))
    real, calls = os.replace, []

    def dying(source, target):
        if str(target).endswith(("/s", f"s-{os.getpid()}-0")):
            calls.append(target)
            if (instant, len(calls)) in {("before", 1), ("between", 2)}:
                raise KeyboardInterrupt
        real(source, target)
        if (instant, len(calls)) == ("after", 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    with Run(tmp_path) as run, pytest.raises(KeyboardInterrupt):
        run.stage("s", {"v": 2}, lambda folder, meter: (folder / "v").write_text("2"))
    monkeypatch.setattr(os, "replace", real)

    def never(folder, meter):
        raise AssertionError("a finished stage was built again")

    with Run(tmp_path) as run:
        assert (run.stage("s", {"v": 2}, never).path / "v").read_text() == "2"


def test_a_damaged_stage_file_means_the_stage_is_built_again(tmp_path):
    with Run(tmp_path) as run:
        run.stage("s", {}, lambda folder, meter: None)
    (tmp_path / "s" / "stage.json").write_text('{"hash": ')
    with Run(tmp_path) as run:
        assert not run.stage("s", {}, lambda folder, meter: None).reused


def test_two_processes_cannot_write_to_one_run(tmp_path):
    with Run(tmp_path):
        code = f"from pathlib import Path\nfrom frugalrec.runs import Run\nRun(Path({str(tmp_path)!r})).__enter__()"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is writing to" in other.stderr


def test_a_full_disk_leaves_the_finished_stages_intact(tmp_path):
    """A real full disk, where this process may mount one; else the error the system would raise."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True
        ).returncode
        == 0
    )
    try:
        with Run(disk / "r") as run:
            run.stage("one", {}, lambda folder, meter: (folder / "x").write_text("kept"))

        def fill(folder, meter):
            if not mounted:
                raise OSError(28, "No space left on device")
            (folder / "big").write_bytes(b"0" * 10_000_000)

        with Run(disk / "r") as run:
            assert run.stage("one", {}, fill).reused
            with pytest.raises(StorageError, match="the disk is full. Finished stages are intact"):
                run.stage("two", {}, fill)
        assert (disk / "r/one/x").read_text() == "kept"
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def test_observer_hears_of_every_stage(tmp_path):
    heard = []

    class Ears(Observer):
        def started(self, name):
            heard.append(("started", name))

        def finished(self, stage):
            heard.append(("finished", stage.name, stage.reused))

    for _ in range(2):
        with Run(tmp_path, Ears()) as run:
            run.stage("s", {}, lambda folder, meter: None)
    assert heard == [("started", "s"), ("finished", "s", False), ("finished", "s", True)]


def test_hashes_follow_content_and_not_order(tmp_path):
    assert key_hash({"a": 1, "b": 2}) == key_hash({"b": 2, "a": 1}) != key_hash({"a": 1, "b": 3})
    (tmp_path / "a").write_text("x")
    before = file_hash(tmp_path)
    (tmp_path / "a").write_text("y")
    assert file_hash(tmp_path) != before


def test_write_text_replaces_at_once(tmp_path):
    write_text(tmp_path / "f", "old")
    write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_importing_the_package_loads_no_heavy_library():
    code = textwrap.dedent("""
        import sys, json
        import frugalrec, frugalrec.cli
        print(json.dumps([m for m in ("torch", "transformers", "fastapi", "polars", "scipy") if m in sys.modules]))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_missing_extra_explains_itself():

    with pytest.raises(MissingExtraError, match=r"pip install 'frugalrec\[llm\]'"):
        require("surely_not_installed", "llm")
