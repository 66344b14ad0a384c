"""From a run to the lists of all users, through the commands: plan, batch files, rank."""

import json
import re

import numpy as np
import polars as pl
import pytest
from test_endpoint_run import SETTINGS, backwards

from frugalrec import config as configuration
from frugalrec.cli import allocating
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.pipeline import run_pipeline
from frugalrec.stages import planning
from frugalrec.testing.faulty_endpoint import FaultyEndpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run at an endpoint that goes on living."""
    folder = tmp_path_factory.mktemp("run")
    with FaultyEndpoint(reply=backwards) as server:
        settings = {**SETTINGS, "llm.model": f"{server.url}#any", "llm.calibration_users": 40}
        run_pipeline(configuration.load(None, settings), folder)
        yield folder, server


def read(plan):
    return pl.read_csv(plan, schema_overrides={"user": pl.String})


def test_a_plan_names_every_user_once_and_keeps_the_budget(finished, tmp_path):
    folder, server = finished
    calls = server.calls
    facts = planning.plan(folder, tmp_path / "plan.csv", budget="25%", policy="uncertainty")
    assert server.calls == calls  # planning asks nobody
    table = read(tmp_path / "plan.csv")
    data = Dataset.load(folder / "data")
    assert sorted(table["user"].to_list()) == sorted(data.user_ids.tolist())
    assert table.filter(pl.col("routed"))["cost"].sum() == pytest.approx(facts["cost"])
    assert 0.15 * facts["cost_of_all"] < facts["cost"] <= 0.25 * facts["cost_of_all"]
    assert facts["routed"] == int(table["routed"].sum())
    assert dict(zip(table["user"], table["history"], strict=True))[data.user_ids[0]] == data.lengths[0]


def test_without_a_limit_exactly_those_are_routed_whose_gain_is_expected(finished, tmp_path):
    folder, _ = finished
    facts = planning.plan(folder, tmp_path / "plan.csv", budget="unlimited")
    table = read(tmp_path / "plan.csv")
    assert table["routed"].to_list() == (table["lower_bound"] > 0).to_list()
    assert facts["expected_gain"] == pytest.approx(
        table.filter(pl.col("routed"))["expected_gain"].sum() / table.height
    )
    assert facts["evidence"]


def test_batch_files_go_out_and_come_back_and_rank_asks_nobody(finished, tmp_path):
    folder, server = finished
    plan, out = tmp_path / "plan.csv", tmp_path / "requests.jsonl"
    planning.plan(folder, plan, budget="12 users", policy="random")
    exported = planning.export_requests(folder, plan, out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert exported["requests"] == len(lines) <= 12
    assert exported["requests"] + exported["left_out"] == 12
    assert not any(re.search(r"user_?id|item_?id", json.dumps(line)) for line in lines)

    calls = server.calls
    before = planning.rank(folder, plan, tmp_path / "before.jsonl", ask=False)
    assert (server.calls, before["re-ranked"]) == (calls, 0)  # no answer yet: cheap lists, and no call

    answers = tmp_path / "answers.jsonl"
    replies = [
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": {
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": backwards(line["body"])}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5}}}}
        for line in lines
    ]  # fmt: skip
    answers.write_text("\n".join([*(json.dumps(reply) for reply in replies[:-1]), "not json"]) + "\n")
    imported = planning.import_answers(folder, plan, [answers])
    assert (imported["stored"], imported["broken"], imported["missing"]) == (len(lines) - 1, 1, 1)

    facts = planning.rank(folder, plan, tmp_path / "lists.jsonl", ask=False, k=6)
    assert server.calls == calls
    lists = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert len(lists) == facts["users"]
    assert all(len(set(entry["items"])) == 6 for entry in lists)
    assert facts["reasons"]["cached"] == len(lines) - 1
    assert sum(facts["reasons"].values()) == facts["routed"] == 12
    assert sum(entry["llm"] for entry in lists) == facts["re-ranked"]


def test_rank_asks_what_is_missing_and_only_once(finished, tmp_path):
    folder, server = finished
    plan = tmp_path / "plan.csv"
    planning.plan(folder, plan, budget="5 users", policy="fewest-interactions")
    calls = server.calls
    first = planning.rank(folder, plan, tmp_path / "a.jsonl")
    asked = server.calls - calls
    second = planning.rank(folder, plan, tmp_path / "b.jsonl")
    assert asked <= 5
    assert server.calls - calls == asked
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    assert first["routed"] == second["routed"] == 5


def test_what_cannot_be_planned_is_refused(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(StorageError, match="no finished run"):
        planning.plan(tmp_path, tmp_path / "plan.csv")
    with pytest.raises(ConfigError, match="cannot read the budget"):
        planning.plan(folder, tmp_path / "plan.csv", budget="lots")
    with pytest.raises(ConfigError, match="unknown policy"):
        planning.plan(folder, tmp_path / "plan.csv", policy="best")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("name\nx\n")
    with pytest.raises(DataError, match="is no plan"):
        planning.rank(folder, wrong, tmp_path / "x.jsonl")
    wrong.write_text("user,routed\nnobody,true\n")
    with pytest.raises(DataError, match="the user 'nobody'"):
        planning.rank(folder, wrong, tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        planning.rank(folder, tmp_path / "none.csv", tmp_path / "x.jsonl")


def test_data_that_have_grown_are_not_planned_for_with_an_old_run(tmp_path):
    drawn = np.random.default_rng(0)
    taken = [(f"u{user}", f"i{item}") for user in range(40) for item in drawn.choice(60, 12, replace=False)]
    rows = pl.DataFrame(taken, schema=["user", "item"], orient="row").with_columns(
        time=pl.int_range(len(taken))
    )
    table = tmp_path / "orders.csv"
    rows.write_csv(table)
    with FaultyEndpoint(reply=backwards) as server:
        settings = {**SETTINGS, "llm.model": f"{server.url}#any", "data.source": str(table)}
        run_pipeline(configuration.load(None, settings), tmp_path / "run")
        calls = server.calls
        pl.concat([rows, rows.tail(3).with_columns(time=pl.lit(900, pl.Int64))]).write_csv(table)
        with pytest.raises(StorageError, match="the stage data of the run"):
            planning.plan(tmp_path / "run", tmp_path / "plan.csv", budget="5 users", policy="random")
        assert server.calls == calls


def test_lists_in_windows_are_not_exported(finished, tmp_path, monkeypatch):
    folder, _ = finished
    planning.plan(folder, tmp_path / "plan.csv", budget="5 users", policy="random")
    monkeypatch.setattr(planning.WindowReranker, "window", 5)
    with pytest.raises(ConfigError, match="depends on the answer before"):
        planning.export_requests(folder, tmp_path / "plan.csv", tmp_path / "r.jsonl")


def test_the_commands_say_what_they_did(finished, tmp_path, capsys):
    folder, _ = finished
    plan = tmp_path / "plan.csv"
    allocating.plan(folder, budget="4 users", policy="random", floor=0.0, out=plan, as_json=False)
    allocating.export_batch(folder, plan, tmp_path / "r.jsonl", as_json=False)
    allocating.rank(folder, plan, tmp_path / "l.jsonl", k=3, ask=False, as_json=False)
    said = capsys.readouterr().out
    assert "4 of 60 users get the LLM (random, budget 4 users)" in said
    assert "requests (" in said
    assert "of 60 lists re-ranked (4 routed" in said
