"""The whole chain with a tiny random LLM: the odd corners of the configuration end in a report, too."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs frugalrec[llm]")

from frugalrec import config as configuration
from frugalrec.pipeline import run_pipeline
from frugalrec.testing.tiny_models import tiny_llama

pytestmark = pytest.mark.slow
SMALL = {
    "data.members": 40,
    "recommenders.names": ["popularity", "ease"],
    "recommenders.depth": 12,
    "selection.budget": "20%",
    "selection.window": 3,
    "tuning.epochs": 1,
    "tuning.rank": 2,
    "tuning.negatives": 1,
    "llm.candidates": 4,
    "llm.calibration_users": 3,
    "allocation.budget": 4,
    "evaluation.resamples": 100,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


def run(tiny, folder, **changes):
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return run_pipeline(configuration.load(None, {**SMALL, "llm.model": tiny, **changed}), folder)


def test_nobody_is_routed_and_every_llm_arm_is_the_cheap_list(tiny, tmp_path):
    report = run(tiny, tmp_path, allocation__policy="none", tuning__enabled=False)
    assert "llm-tuned" not in {arm.name for arm in report.arms}
    gap = report.arm("llm-zero-shot").difference["ndcg@10"]
    assert gap.mean == gap.low == gap.high == 0
    assert report.arm("llm-zero-shot").cost.tokens_per_user == 0


def test_a_price_table_puts_money_beside_every_stage(tiny, tmp_path):
    prices = {"as_of": "2026-01-01", "currency": "EUR", "per_machine_hour": 3.6}
    report = run(tiny, tmp_path, prices=prices, llm__zero_shot=False, llm__min_like=4)
    assert report.currency == "EUR"
    for stage in report.stages:
        assert stage.money == pytest.approx(stage.wall_s * 0.001)
    tuned, stages = report.arm("llm-tuned"), {stage.name: stage for stage in report.stages}
    assert tuned.users == report.arm("ease").users
    expected = stages["llm/test-tuned"].money * 1000 / tuned.users
    assert tuned.cost.money_per_1000_users == pytest.approx(expected)
    assert tuned.cost.tokens_per_user == pytest.approx(stages["llm/test-tuned"].tokens_in / tuned.users)


def test_unrouted_users_keep_the_cheap_list_and_a_new_budget_keeps_the_tuning(tiny, tmp_path):
    first = run(tiny, tmp_path)
    second = run(tiny, tmp_path, allocation__budget=6)
    reused = {stage.name: stage.reused for stage in second.stages}
    assert reused["tuning"] and reused["llm/valid-tuned"] and not reused["llm/test-tuned"]
    assert first.hashes == second.hashes
    noted = [note for note in first.notes if "re-ranked 4 of" in note]
    assert len(noted) == 1


def test_recommend_reranks_with_what_the_run_left(tiny, tmp_path):
    from frugalrec.stages.models import recommend_from

    run(tiny, tmp_path)
    cheap = recommend_from(tmp_path, [], k=4)
    live = recommend_from(tmp_path, [], k=4, llm=True)
    assert [entry["user"] for entry in cheap] == [entry["user"] for entry in live]
    for a, b in zip(cheap, live, strict=True):
        assert sorted(i["title"] for i in a["items"]) == sorted(i["title"] for i in b["items"])
