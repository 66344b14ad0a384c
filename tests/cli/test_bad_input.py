"""Bad input ends with one paragraph that names the value and the remedy, and exit code 2."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from frugalrec.cli import main

GOOD = "user,item,rating,timestamp\n" + "".join(
    f"u{u},i{(u * 7 + k * k) % 11},{1 + (u + k) % 5},{1_600_000_000 + 86_400 * k + u}\n"
    for u in range(12)
    for k in range(6)
)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line in this process; return (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["frugalrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


class Hostile:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('touched').write_text('x')",))


def write_hostile(folder: Path) -> Path:
    target = folder / "training_dict.npy"
    with target.open("wb") as handle:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(handle, header)
        pickle.dump(Hostile(), handle)
    for name in ("validation_dict", "testing_dict"):
        (folder / f"{name}.npy").write_bytes(target.read_bytes())
    return folder


def write_truncated(folder: Path) -> Path:
    pl.DataFrame({"user": ["a"] * 500, "item": ["x"] * 500}).write_parquet(folder / "t.parquet")
    (folder / "t.parquet").write_bytes((folder / "t.parquet").read_bytes()[:150])
    return folder / "t.parquet"


def write_csv(folder: Path, text: str | bytes) -> Path:
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "t.csv"


FUTURE = GOOD + f"u1,i1,5,{int(time.time()) + 10 * 86_400}\n"
CASES = {
    "missing file": (lambda f: f / "nowhere.csv", "nowhere.csv"),
    "wrong columns": (lambda f: write_csv(f, "who,what\na,b\n"), "who"),
    "empty table": (lambda f: write_csv(f, "user,item\n"), "empty"),
    "empty file": (lambda f: write_csv(f, ""), "empty"),
    "null user": (lambda f: write_csv(f, GOOD + ",i1,5,1600000000\n"), "no user id"),
    "text rating": (lambda f: write_csv(f, GOOD + "u1,i1,good,1600000000\n"), "'good'"),
    "future timestamp": (lambda f: write_csv(f, FUTURE), "future"),
    "milliseconds": (lambda f: write_csv(f, GOOD + "u1,i1,5,1600000000000000\n"), "1600000000000000"),
    "mixed encodings": (lambda f: write_csv(f, GOOD.encode() + b"u1,caf\xe9,5,1600000000\n"), "latin-1"),
    "hostile pickle": (write_hostile, "exec"),
    "truncated parquet": (write_truncated, "t.parquet"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused_by_every_command_that_reads(case, command, tmp_path, monkeypatch):
    make, named = CASES[case]
    source = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in (("audit", source), ("run", source, "--llm", "none", "--out", tmp_path / "r")):
        code, out, err = command(*words)
        assert code == 2, err
        assert named in err
        assert err.strip().startswith("error: ")
        assert len(err.strip().split("\n\n")) == 1
        assert "Traceback" not in err
    assert not (tmp_path / "touched").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("run", "film-club", "--llm", "no-such-model"), "no-such-model"),
        (("run", "film-club", "--llm", "none", "--model", "transformer9000"), "transformer9000"),
        (("run", "film-club", "--set", "tuning.epochs=0"), "tuning.epochs"),
        (("run", "film-club", "--set", "tuning.epoch=3"), "tuning.epoch"),
        (("run", "film-club", "--set", "no-equals-sign"), "no-equals-sign"),
        (("run", "film-club", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("evaluate", "film-club", "--metric", "ndgc@10"), "ndgc"),
        (("audit", "film-club", "--allow", "idorder"), "idorder"),
        (("data", "get", "no-such-data"), "no-such-data"),
        (("models", "get", "no-such-model"), "no-such-model"),
        (("report", "nowhere"), "nowhere"),
        (("recommend", "nowhere"), "nowhere"),
        (("select", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_refused_and_named(words, named, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words)
    assert code == 2
    assert named in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_selection_that_cannot_be_made_leaves_no_files(command, tmp_path):
    run = tmp_path / "r"
    words = ("--llm", "none", "--model", "popularity", "--set", "data.members=40", "--out", run)
    assert command("run", "film-club", *words)[0] == 0
    small = ("--option", "options={epochs: 1, embedding_size: 8}")
    cases = [
        (("--scorer", "random", "--budget", "5000"), "budget of 5000 rows exceeds the "),
        (("--scorer", "influence", "--budget", "5000.0"), "budget of 5000 rows exceeds the "),
        (("--scorer", "random", "--budget", "many"), "many"),
        (("--scorer", "best"), "best"),
        (("--scorer", "influence", "--option", "depth=3"), "depth"),
        (("--scorer", "dealrec", "--preset", "finest"), "finest"),
        (("--scorer", "dealrec", "--budget", "5"), "give --option llm="),
        (("--scorer", "ccs", "--option", "groups=900", *small), "groups=900"),
        (("--scorer", "influence", "--option", "options={epochs: 0}"), "epochs"),
        (("--scorer", "grand", "--option", "n_surrogates=0"), "n_surrogates"),
        (("--scorer", "grand", "--option", "n_surrogates=some"), "'some'"),
        (("--scorer", "ccs", "--option", "groups=some", *small), "groups='some'"),
        (("--scorer", "tf-dcon", "--option", "clusters=some"), "clusters='some'"),
        (("--scorer", "tf-dcon", "--option", "clusters=0"), "clusters=0"),
        (("--scorer", "tf-dcon", "--option", "clusters=900"), "clusters=900"),
        (("--scorer", "tf-dcon", "--option", "vectors=[[1.0], [2.0]]"), "got (2, 1)"),
        (("--scorer", "recranker", "--option", "clusters=900", *small), "clusters=900"),
    ]
    for options, named in cases:
        code, _, err = command("select", run, *options)
        assert code == 2, (options, err)
        assert named in err and "Traceback" not in err
    left = [path for path in (run / "selections").rglob("*") if path.is_file()]
    assert not left
    assert not list((run / ".work").iterdir())


def test_an_error_level_leak_ends_with_exit_code_1_and_can_be_allowed(command, tmp_path):
    rows = [f"{u},{u * 5 + k}" for u in range(200) for k in range(5)]  # ids in order of appearance
    source = write_csv(tmp_path, "user,item\n" + "\n".join(rows) + "\n")
    code, out, err = command("audit", source)
    assert code == 1
    assert "--allow id-order" in err
    names = ("id-order", "sorted-sequences")
    allowed = [word for name in names for word in ("--allow", name)]
    assert command("audit", source, *allowed)[0] == 0
    assert command("run", source, "--llm", "none", "--out", tmp_path / "r", "--model", "popularity")[0] == 1


@pytest.mark.slow
def test_a_full_disk_leaves_the_run_before_it_intact(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a small disk")
    try:
        words = ("run", "film-club", "--llm", "none", "--set", "data.members=30", "--model", "popularity")
        assert command(*words, "--out", disk / "r", "--json")[0] == 0
        before = (disk / "r" / "report.json").read_text()
        (disk / "filler").write_bytes(b"0" * 10)
        with (disk / "filler").open("ab") as filler:  # leave 16 KiB
            room = int(
                subprocess.run(
                    ["df", "--output=avail", "-B1", str(disk)], capture_output=True, text=True
                ).stdout.split()[-1]
            )
            filler.write(b"0" * (room - 16_384))
        code, _, err = command(*words, "--model", "ease", "--out", disk / "r", "--json")
        assert code == 2
        assert "the disk is full" in err
        assert (disk / "r" / "report.json").read_text() == before
        (disk / "filler").unlink()
        assert command(*words, "--model", "ease", "--out", disk / "r", "--json")[0] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
