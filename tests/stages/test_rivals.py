"""The rival that needs no LLM: boosted trees over the first stage's candidates, as a stage of the run."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("lightgbm", reason="needs frugalrec[rank]")

from frugalrec import config as configuration
from frugalrec.runs import Run
from frugalrec.stages import arms, cheap, rivals
from frugalrec.stages.data import prepare

SETTINGS = {
    "data.members": 160,
    "data.split": "user-time",
    "recommenders.names": ["random", "popularity", "ease", "markov"],
    "recommenders.first_stage": "ease",
    "recommenders.depth": 20,
    "llm.model": "none",
    "llm.candidates": 10,
    "evaluation.resamples": 100,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = configuration.load(None, SETTINGS)
    with Run(folder) as run:
        data = prepare(run, config)
        fitted = [cheap.fit_and_evaluate(run, config, data, name) for name in config.recommenders.names]
    return folder, data, fitted, cheap.choose_first_stage(config, fitted)


def learned(base, **changes):
    folder, data, fitted, first = base
    config = configuration.load(None, {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}})
    with Run(folder) as run:
        return rivals.learn_to_rank(run, config, data, fitted, first), run.stages


@pytest.mark.slow
def test_the_candidates_stay_and_only_their_order_may_change(base):
    rival, _ = learned(base)
    whole = base[3].rankings["test"]
    assert np.array_equal(np.sort(rival.ranking.items[:, :10]), np.sort(whole.items[:, :10]))
    assert np.array_equal(rival.ranking.items[:, 10:], whole.items[:, 10:])
    if rival.trees == 0:
        assert np.array_equal(rival.ranking.items, whole.items)
    assert set(rival.opinions) == {"popularity", "markov"}  # never a control, never itself
    assert rival.fit_s > base[3].fit_s


def test_a_second_call_finds_it_finished_and_equal(base):
    first, _ = learned(base)
    again, stages = learned(base)
    assert stages[-1].reused
    assert np.array_equal(first.ranking.items, again.ranking.items)


def test_a_first_stage_opened_again_is_no_opinion_of_its_own(base):
    folder, data, fitted, first = base
    config = configuration.load(None, SETTINGS)
    twin = dataclasses.replace(first)
    assert {arm.name for arm in cheap.other_models(config, fitted, twin)} == {"popularity", "markov"}
    with Run(folder) as run:
        rivals.learn_to_rank(run, config, data, fitted, first)
        rivals.learn_to_rank(run, config, data, fitted, twin)
    assert run.stages[-1].reused


def test_it_stands_aside_where_it_cannot_learn(base, monkeypatch):
    assert learned(base, recommenders__learning_to_rank=False)[0] is None
    monkeypatch.setattr(rivals, "FEWEST_LISTS", 10_000)
    assert learned(base)[0] is None
    monkeypatch.undo()
    monkeypatch.setattr(rivals, "available", lambda: False)
    assert learned(base)[0] is None


def test_it_is_an_arm_without_tokens(base):
    rival, _ = learned(base)
    arm = arms.rival_arm(configuration.load(None, SETTINGS), base[1], base[3], rival)
    assert arm.kind == "cheap"
    assert arm.cost.tokens_per_user is None
    assert "Popularity" in arm.description
    assert arm.evaluation.users.size == base[3].rankings["test"].users.size
