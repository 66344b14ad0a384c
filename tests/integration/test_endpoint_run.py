"""A whole run whose LLM is an endpoint: nothing paid twice, no cap passed, every failure counted."""

import json
import re

import numpy as np
import pytest

from frugalrec import config as configuration
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.http.accounts import spent
from frugalrec.pipeline import run_pipeline
from frugalrec.stages.finished import open_finished
from frugalrec.stages.live import rerank_live
from frugalrec.testing.faulty_endpoint import FaultyEndpoint, seeded_faults
from frugalrec.types import Ranking

pytestmark = pytest.mark.slow

SETTINGS = {
    "data.members": 60,
    "data.split": "user-time",
    "recommenders.names": ["popularity", "ease"],
    "recommenders.first_stage": "ease",
    "recommenders.depth": 12,
    "llm.candidates": 6,
    "llm.calibration_users": 25,
    "llm.weights": [0.0, 0.5, 1.0],
    "allocation.budget": 30,
    "evaluation.resamples": 100,
}


def backwards(body):
    """The model: it answers every list in the reverse of the order shown."""
    n = len(re.findall(r"^\d+: ", body["messages"][-1]["content"], re.MULTILINE))
    return json.dumps({"ranking": list(range(n, 0, -1))})


def run(server, folder, **changes):
    settings = {
        **SETTINGS,
        "llm.model": f"{server.url}#any",
        **{k.replace("__", "."): v for k, v in changes.items()},
    }
    return run_pipeline(configuration.load(None, settings), folder)


def test_a_run_asks_each_user_once_and_a_second_run_asks_nobody(tmp_path):
    with FaultyEndpoint(reply=backwards) as server:
        report = run(server, tmp_path)
        assert server.calls == 25 + 30
        found = {arm.name: arm for arm in report.arms}
        assert found["llm-zero-shot"].cost.tokens_per_user > 0
        assert "llm-tuned" not in found
        stages = {stage.name: stage for stage in report.stages}
        asked = [stages["llm/valid-zero-shot"], stages["llm/test-zero-shot"]]
        assert [stage.llm_calls for stage in asked] == [25, 30]
        assert (
            sum(s.tokens_in + s.tokens_out for s in asked)
            == server.billed_tokens
            == spent(tmp_path / "endpoint.sqlite").tokens
        )
        run(server, tmp_path)
        assert server.calls == 55
        # another option re-runs the stage; what is known is not asked again
        run(server, tmp_path, allocation__budget=35)
        assert server.calls == 60


def test_where_no_order_can_be_better_nobody_is_asked(tmp_path):
    # the order of six places cannot change who has a hit among ten
    changes = {"allocation__policy": "gain-per-cost", "evaluation__primary": "hit@10"}
    with FaultyEndpoint(reply=backwards) as server:
        report = run(server, tmp_path, **changes)
        assert server.calls == 0
        assert any("asked nothing" in note and "first 6 places" in note for note in report.notes)
        assert not [arm for arm in report.arms if arm.kind in ("llm", "fusion")]
        with pytest.raises(ConfigError, match="asked its LLM nothing"):
            open_finished(tmp_path)
        # who is told whom to ask asks
        run(server, tmp_path, **{**changes, "allocation__policy": "random"})
        assert server.calls == 55


def test_no_request_names_a_user_or_an_item_id(tmp_path):
    with FaultyEndpoint(reply=backwards) as server:
        run(server, tmp_path)
        texts = [message["content"] for body in server.bodies for message in body["messages"]]
    data = Dataset.load(tmp_path / "data")
    said = "\n".join(texts)
    for one in [*data.user_ids.tolist(), *data.item_ids.tolist()]:
        assert one not in said, one


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_every_user_has_a_list_and_every_failure_is_counted(tmp_path, share):
    kinds = ("500", "reset", "malformed", "prose", "truncated-body", "400")
    with FaultyEndpoint(reply=backwards, faults=seeded_faults(0, share, kinds)) as server:
        report = run(server, tmp_path, endpoint__deadline_s=20.0)
    answers = json.loads((tmp_path / "llm/test-zero-shot/answers.json").read_text())
    assert sum(answers["reasons"].values()) == 30
    odds = np.load(tmp_path / "llm/test-zero-shot/odds.npz")["odds"]
    kept = int(np.isnan(odds).all(axis=1).sum())
    failed = 30 - sum(answers["reasons"].get(reason, 0) for reason in ("answered", "cached"))
    assert kept == failed
    assert failed > 0
    assert any(f"{failed} of 30 routed users keep the cheap list" in note for note in report.notes)
    assert report.arm("llm-zero-shot").users == report.arm("ease").users


def test_spending_never_passes_the_cap_and_the_run_still_ends_in_a_report(tmp_path):
    with FaultyEndpoint(reply=backwards, faults=seeded_faults(1, 0.2, ("500", "429"))) as server:
        report = run(server, tmp_path, endpoint__cap="20 calls", endpoint__concurrency=8)
        assert server.calls <= 20
    reasons = json.loads((tmp_path / "llm/test-zero-shot/answers.json").read_text())["reasons"]
    assert reasons["over-budget"] > 0
    assert any("over-budget" in note for note in report.notes)


def test_a_larger_cap_asks_those_who_were_left_out_and_nobody_else(tmp_path):
    with FaultyEndpoint(reply=backwards) as server:
        run(server, tmp_path, endpoint__cap="20 calls")
        assert server.calls == 20
        report = run(server, tmp_path, endpoint__cap="1000 calls")
        assert server.calls == 55
    assert not any("over-budget" in note for note in report.notes)


def test_what_was_out_of_reach_is_asked_again_by_the_same_command(tmp_path):
    down = {"now": True}

    def fault(number):
        return "500" if down["now"] else None

    with FaultyEndpoint(reply=backwards, faults=fault) as server:
        report = run(server, tmp_path, endpoint__deadline_s=5.0)
        assert any("calibration users keep the cheap list" in note for note in report.notes)
        down["now"] = False
        report = run(server, tmp_path, endpoint__deadline_s=5.0)
    assert not any("keep the cheap list after all" in note for note in report.notes)


def test_another_metric_asks_nobody_and_costs_stay_what_they_are(tmp_path):
    with FaultyEndpoint(reply=backwards) as server:
        first = run(server, tmp_path, allocation__budget="40%")
        calls = server.calls
        second = run(server, tmp_path, allocation__budget="40%", evaluation__metrics=["ndcg@10", "recall@5"])
        assert server.calls == calls
    assert second.allocation["whole"] == first.allocation["whole"] > 0
    assert second.allocation["routed"] == first.allocation["routed"] > 0


def test_recommend_asks_the_endpoint_that_the_run_asked(tmp_path):
    with FaultyEndpoint(reply=backwards) as server:
        run(server, tmp_path)
        data = Dataset.load(tmp_path / "data")
        items = np.arange(12, dtype=np.int32)[None]
        scores = np.linspace(1, 0, 12, dtype=np.float32)[None]
        ranking = Ranking(users=np.array([3], dtype=np.int32), items=items, scores=scores)
        found = rerank_live(tmp_path, data, ranking)
    assert sorted(found.items[0].tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"llm.model": "http://127.0.0.1:9/v1"}, ConfigError, "does not say which model"),
        ({"llm.style": "pointwise"}, ConfigError, "an endpoint only answers"),
        ({"endpoint.api_key_env": "FRUGALREC_NO_SUCH_KEY"}, ModelError, "is not set"),
        ({"endpoint.cap": "2 USD"}, ConfigError, "price"),
        ({"endpoint.cap": "12 users"}, ConfigError, "a cap is in money"),
        ({"endpoint.profile": "other"}, ConfigError, "unknown profile"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(tmp_path, changes, error, message):
    settings = {**SETTINGS, "llm.model": "http://127.0.0.1:9/v1#any", **changes}
    with pytest.raises(error, match=message):
        run_pipeline(configuration.load(None, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_selection_that_needs_weights_says_so(tmp_path):
    with FaultyEndpoint(reply=backwards) as server, pytest.raises(ModelError, match="only answers"):
        run(server, tmp_path, selection__scorer="effort")
