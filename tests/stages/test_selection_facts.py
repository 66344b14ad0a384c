"""The report's part on selection, from a run small enough to compute by hand."""

import json

import numpy as np
import polars as pl
import pytest

from frugalrec import config as configuration
from frugalrec.data.examples import Examples
from frugalrec.ledger import Usage
from frugalrec.runs import Stage
from frugalrec.stages.choice import selection_facts
from frugalrec.stages.selection import Samples
from frugalrec.types import Selection

SCORES = [0.5, 0.1, np.nan, 0.9, 0.7, 0.3, 0.2, np.nan]
INFLUENCE = [1.0, -2.0, 3.0, -4.0, 5.0, 6.0, -7.0, 8.0]
KEPT = [0, 3]
TUNING = Usage(wall_s=30.0, tokens_trained=800)
# 2 epochs over 8 rows (2 kept, each with 3 negatives) at 0.8 rows a second: 20 s, so 10 s for one sample
EVIDENCE = {"samples_per_second": 0.8, "rows": 8, "config": {"epochs": 2}}
COSTS = {
    "surrogate": Usage(wall_s=5.0),
    "influence": Usage(wall_s=1.0),
    "effort": Usage(wall_s=12.0, tokens_in=300, tokens_cached=50, llm_calls=6),
}
STAGE = Usage(wall_s=20.0, tokens_in=300, tokens_cached=50, llm_calls=6)


def made(folder, *, order=None, kept=KEPT, scorer="dealrec", costs=COSTS, stage=STAGE):
    """A finished selection stage on disk, its rows in another order if one is given."""
    order = np.arange(8) if order is None else np.asarray(order)
    lengths = np.array([3, 1, 2, 4, 1, 2, 3, 1])[order]
    rows = Examples(
        users=order.astype(np.int32),
        indptr=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.zeros(lengths.sum(), dtype=np.int32),
        values=None,
        targets=order.astype(np.int32),
        labels=None,
    )
    is_kept = np.isin(order, kept)
    scores = np.array(SCORES, dtype=np.float32)[order]
    folder.mkdir(parents=True)
    pl.DataFrame(
        {
            "row": np.arange(8),
            "title": [f"Film {number}" for number in order],
            "history": lengths,
            "influence": np.array(INFLUENCE)[order],
            "effort": np.full(8, 2.5),
            "score": scores,
            "kept": is_kept,
        }
    ).write_parquet(folder / "selection.parquet")
    about = {"rows": 8, "kept": len(kept), "undefined": 2, "kept_undefined": 0, "deciles": [0.5] + [0.0] * 8 + [0.5],
             "negative_influence_kept": 0.5, "negative_influence_all": 0.375}  # fmt: skip
    (folder / "diagnostics.json").write_text(json.dumps(about))
    (folder / "costs.json").write_text(json.dumps({name: cost.to_dict() for name, cost in costs.items()}))
    selection = Selection(
        kept=np.flatnonzero(is_kept), scores=scores, scorer=scorer, budget=len(kept), seed=3
    )
    stage = Stage(name="selection", path=folder, hash="", usage=stage, reused=False)
    return Samples(stage=stage, selection=selection, candidates=rows)


CONFIG = configuration.load(None, {"selection.options": {"preset": "frugal"}})


def test_the_cost_is_the_one_computed_by_hand(tmp_path):
    cost = selection_facts(CONFIG, made(tmp_path / "s"), TUNING, EVIDENCE)["cost"]
    assert [tuple(part.values()) for part in cost["parts"]] == [
        ("surrogate", 5.0, 0),
        ("influence", 1.0, 0),
        ("effort", 12.0, 300),
        ("rest", 2.0, 0),  # 20 s of the stage, less 18
        ("tuning", 30.0, 800),
    ]
    assert (cost["together"]["wall_s"], cost["together"]["tokens"]) == (50.0, 1100)
    # one kept sample: 10 s and 400 tokens; six more rows
    assert (cost["further"]["wall_s"], cost["further"]["tokens"]) == (10.0, 400.0)
    assert (cost["full"]["wall_s"], cost["full"]["tokens"]) == (30 + 6 * 10, 800 + 6 * 400)
    assert cost["time_ratio"] == pytest.approx(50 / 90)
    assert cost["token_ratio"] == pytest.approx(1100 / 3200)


def test_the_rows_shown_are_the_best_kept_and_both_ends_of_the_others(tmp_path):
    facts = selection_facts(CONFIG, made(tmp_path / "s"), TUNING, EVIDENCE)
    assert [(row["target"], row["history"], row["influence"]) for row in facts["examples"]] == [
        ("Film 3", 4, -4.0),
        ("Film 0", 3, 1.0),
    ]
    # by score: 4, 5, 6, 1; films 2 and 7 have none
    assert [row["target"] for row in facts["left_out"]] == ["Film 4", "Film 5", "Film 6", "Film 1"]
    assert facts["left_out"][0] == {
        "target": "Film 4", "history": 1, "influence": 5.0, "effort": 2.5, "score": pytest.approx(0.7),
    }  # fmt: skip
    assert facts["lengths"] == {"edges": [1, 2, 3, 4, 5], "all": [3, 2, 2, 1], "kept": [0, 0, 1, 1]}
    assert (facts["kept"], facts["candidates"], facts["budget"], facts["seed"]) == (2, 8, 2, 3)
    assert (facts["undefined"], facts["kept_undefined"]) == (2, 0)
    assert (facts["negative_influence_kept"], facts["negative_influence_all"]) == (0.5, 0.375)
    assert facts["options"] == {"preset": "frugal"} and "influence" in facts["prefers"]
    assert facts["deciles"][0] == 0.5


def test_the_order_of_the_candidates_plays_no_part(tmp_path):
    first = selection_facts(CONFIG, made(tmp_path / "a"), TUNING, EVIDENCE)
    order = np.random.default_rng(0).permutation(8)
    assert selection_facts(CONFIG, made(tmp_path / "b", order=order), TUNING, EVIDENCE) == first


def test_a_free_choice_of_everything_costs_what_tuning_on_everything_costs(tmp_path):
    samples = made(tmp_path / "s", kept=list(range(8)), scorer="random", costs={}, stage=Usage(wall_s=0.0))
    cost = selection_facts(CONFIG, samples, TUNING, EVIDENCE)["cost"]
    assert [part["name"] for part in cost["parts"]] == ["choosing", "tuning"]
    assert cost["time_ratio"] == cost["token_ratio"] == 1.0
    assert cost["full"]["wall_s"] == TUNING.wall_s


def test_a_random_choice_shows_no_scores(tmp_path):
    facts = selection_facts(
        CONFIG, made(tmp_path / "s", scorer="random", costs={}, stage=Usage(wall_s=0.1)), TUNING, EVIDENCE
    )
    assert facts["prefers"] == "" and "deciles" not in facts
    assert all("score" not in row for row in facts["examples"] + facts["left_out"])
    assert [part["tokens"] for part in facts["cost"]["parts"]] == [0, 800]


def test_without_tuning_there_is_no_estimate(tmp_path):
    cost = selection_facts(CONFIG, made(tmp_path / "s"), None, {})["cost"]
    assert [part["name"] for part in cost["parts"]] == ["surrogate", "influence", "effort", "rest"]
    assert (cost["together"]["wall_s"], cost["together"]["tokens"]) == (20.0, 300)
    assert "full" not in cost and "time_ratio" not in cost


def test_a_tuning_that_measured_no_step_is_counted_whole(tmp_path):
    evidence = {**EVIDENCE, "samples_per_second": 0.0}
    cost = selection_facts(CONFIG, made(tmp_path / "s"), TUNING, evidence)["cost"]
    assert cost["further"]["wall_s"] == 15.0  # 30 s for two samples


def test_a_stage_of_an_earlier_version_has_its_whole_cost_and_no_rows(tmp_path):
    samples = made(tmp_path / "s")
    for name in ("costs.json", "diagnostics.json", "selection.parquet"):
        (samples.stage.path / name).unlink()
    facts = selection_facts(CONFIG, samples, TUNING, EVIDENCE)
    assert [tuple(part.values()) for part in facts["cost"]["parts"]] == [
        ("choosing", 20.0, 300),
        ("tuning", 30.0, 800),
    ]
    assert not {"examples", "deciles", "undefined"} & set(facts)
