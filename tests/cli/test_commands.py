"""Every command does its job alone, on data small enough for a unit test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from frugalrec.cli import main

CLUB = ("film-club",)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["frugalrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        assert not stop.value.code, printed.err
        return printed.out

    return call


@pytest.fixture(scope="module")
def club(tmp_path_factory):
    """A small film club on disk, as a user's own files."""
    from frugalrec.data.convert import convert
    from frugalrec.data.simulate import film_club

    folder = tmp_path_factory.mktemp("club") / "films"
    convert(film_club(n_members=60, seed=1), folder, "csv")
    return folder


def test_describe_says_what_the_data_hold(command, club):
    facts = json.loads(command("data", "describe", club, "--json"))
    assert facts["users"] == 60
    assert "60" in command("data", "describe", club)


def test_convert_writes_what_describe_reads_back(command, club, tmp_path):
    command("data", "convert", club, tmp_path / "out", "--to", "parquet")
    there = json.loads(command("data", "describe", tmp_path / "out", "--json"))
    assert there == json.loads(command("data", "describe", club, "--json"))


def test_audit_shows_its_findings_in_words_and_in_json(command, club):
    found = json.loads(command("audit", club, "--json"))
    assert all(finding["severity"] != "error" for finding in found["findings"])
    words = command("audit", club)
    assert all(finding["name"] in words for finding in found["findings"])


def test_evaluate_compares_models_with_intervals(command, club):
    rows = json.loads(command("evaluate", club, "--model", "popularity", "--model", "random", "--json"))
    assert [row["model"] for row in rows] == ["popularity", "random"]
    for row in rows:
        assert row["metrics"]["ndcg@10"]["low"] <= row["metrics"]["ndcg@10"]["mean"]
        assert row["ms_per_user"] > 0
    assert "popularity" in command("evaluate", club, "--model", "popularity", "--fold", "valid")


def test_train_then_recommend(command, club, tmp_path):
    facts = json.loads(
        command("train", club, "--model", "ease", "--option", "reg=50", "--out", "m", "--json")
    )
    user = facts["example_user"]
    lists = json.loads(command("recommend", "m", "--user", user, "-k", 5, "--json"))
    assert lists[0]["user"] == user
    assert len(lists[0]["items"]) == 5
    assert not {item["title"] for item in lists[0]["items"]} & set(lists[0]["history"])
    scores = [item["score"] for item in lists[0]["items"]]
    assert scores == sorted(scores, reverse=True)
    assert user in command("recommend", "m", "--user", user)


@pytest.mark.slow
def test_a_run_without_an_llm_then_report_and_recommend(command, club):
    words = ("run", club, "--llm", "none", "--model", "popularity", "--model", "ease", "--out", "r", "--json")
    report = json.loads(command(*words))
    assert {arm["name"] for arm in report["arms"]} == {"popularity", "ease", "lambdarank"}
    assert report["verdict"][0]
    assert json.loads(command("report", "r", "--json")) == report
    assert "report.html" in command("report", "r")
    lists = json.loads(command("recommend", "r", "-k", 3, "--json"))
    assert len(lists) == 3
    chosen = json.loads(command("recommend", "r", "-k", 3, "--model", "popularity", "--json"))
    assert [entry["user"] for entry in chosen] == [entry["user"] for entry in lists]


@pytest.mark.slow
def test_select_on_a_finished_run_leaves_a_table_and_the_run_as_it_was(command, club, tmp_path):
    import polars as pl

    command("run", club, "--llm", "none", "--model", "popularity", "--out", "r", "--json")
    before = (tmp_path / "r" / "report.json").read_bytes()
    small = ("--option", "options={epochs: 2, embedding_size: 8}")
    words = ("select", "r", "--scorer", "influence", "--budget", "20%", *small)
    facts = json.loads(command(*words, "--json"))
    table = pl.read_parquet(tmp_path / facts["table"])
    assert facts["kept"] == table["kept"].sum() == round(0.2 * facts["rows"]) == round(0.2 * table.height)
    kept, dropped = table.filter("kept"), table.filter(~pl.col("kept"))
    assert kept["score"].min() >= dropped["score"].max()
    assert facts["deciles"][-2:] == [0.5, 0.5] or sum(facts["deciles"][-3:]) > 0.99
    assert (tmp_path / "r" / "report.json").read_bytes() == before
    assert "kept rows by decile" in command(*words)  # found finished
    assert "kept 7 of" in command("select", "r", "--scorer", "random", "--budget", 7)


@pytest.mark.slow
def test_a_changed_option_reruns_only_what_depends_on_it(command, club):
    words = ("run", club, "--llm", "none", "--model", "popularity", "--model", "ease", "--out", "r", "--json")
    command(*words)
    changed = json.loads(command(*words, "--set", "recommenders.options={ease: {reg: 9}}"))
    reused = {stage["name"]: stage["reused"] for stage in changed["stages"]}
    assert reused == {
        "data": True,
        "audit": True,
        "recommenders/popularity": True,
        "recommenders/ease": False,
        "rivals/lambdarank": False,
    }


def test_doctor_and_models_list_answer(command):
    names = {check["name"] for check in json.loads(command("doctor", "--json"))}
    assert {"python", "numpy", "polars", "disk"} <= names
    assert "python" in command("doctor")
    assert json.loads(command("models", "list", "--json"))[0]["name"] == "smollm2-135m"
    assert "smollm2-135m" in command("models", "list")


def test_help_and_version_answer_without_heavy_imports():
    code = (
        "import sys, contextlib\nfrom frugalrec.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'torch', 'transformers', 'polars', 'scipy', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([sys.executable, "-m", "frugalrec", "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("frugalrec ")


@pytest.mark.slow
def test_importing_the_parts_that_need_no_llm_loads_no_torch():
    code = (
        "import sys, frugalrec.data.readers, frugalrec.evaluation.evaluate, frugalrec.allocation.policies\n"
        "import frugalrec.recommenders, frugalrec.pipeline, frugalrec.stages.llm\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
