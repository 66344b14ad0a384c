"""The selection stage: what a scorer is given, what a kill leaves, and what is there afterwards."""

import json

import numpy as np
import polars as pl
import pytest

pytest.importorskip("transformers", reason="needs frugalrec[llm]")

from frugalrec import config as configuration
from frugalrec.errors import ConfigError
from frugalrec.runs import Observer, Run
from frugalrec.selection.effort import Effort
from frugalrec.selection.gradient_norms import GradientNorms
from frugalrec.stages import data
from frugalrec.stages.data import noun_of
from frugalrec.stages.selection import select_samples
from frugalrec.testing.tiny_models import tiny_llama

SURROGATE = {"options": {"embedding_size": 8, "epochs": 2}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


def configured(tiny, scorer, **options):
    fields = {"data.members": 40, "selection.scorer": scorer, "selection.options": options}
    return configuration.load(None, {**fields, "selection.budget": 6, "llm.model": tiny})


def selected(config, folder, observer=None):
    with Run(folder, observer) as run:
        prepared = data.prepare(run, config)
        return select_samples(run, config, prepared), prepared


class Killed(Exception):
    pass


class Killer(Observer):
    """Ends a run at the given step of its selection."""

    def __init__(self, step):
        self.step = step

    def progressed(self, name, done, total):
        self.step -= name == "selection"
        if self.step == 0:
            raise Killed


@pytest.mark.slow
def test_a_killed_selection_goes_on_and_leaves_finished_files_only(tiny, tmp_path, monkeypatch):
    batches = []
    norms = GradientNorms.__call__

    def batch(self, samples):
        batches.append(tuple(sample.tokens for sample in samples))
        return norms(self, samples)

    monkeypatch.setattr(GradientNorms, "__call__", batch)
    effort = {"max_batch_tokens": 400, "parameters": "lora_B"}
    config = configured(tiny, "dealrec", influence=SURROGATE, effort=effort, choice={"groups": 3})
    whole, _ = selected(config, tmp_path / "whole")
    planned, batches[:] = list(batches), []
    assert len(planned) > 6
    for step in (1, 4, 7):  # in influence, and twice in effort
        with pytest.raises(Killed):
            selected(config, tmp_path / "broken", Killer(step))
    assert 0 < len(batches) < len(planned)
    left = list((tmp_path / "broken" / ".work").rglob("*"))
    assert any(path.suffix == ".sqlite" for path in left)
    assert any(path.suffix == ".safetensors" for path in left)
    broken, _ = selected(config, tmp_path / "broken")
    assert batches == planned
    assert np.array_equal(broken.selection.scores, whole.selection.scores, equal_nan=True)
    assert np.array_equal(broken.selection.kept, whole.selection.kept)
    names = {"costs.json", "diagnostics.json", "selection.json", "selection.npz"}
    names |= {"selection.parquet", "stage.json"}
    assert {path.name for path in broken.stage.path.rglob("*")} == names
    assert list((tmp_path / "broken" / ".work").iterdir()) == []
    for field in ("tokens_in", "tokens_cached", "llm_calls"):  # the killed attempts' share included
        spent = [getattr(samples.stage.usage, field) for samples in (whole, broken)]
        assert spent[0] == spent[1]


@pytest.mark.slow
def test_the_ledger_holds_the_tokens_of_scoring_and_the_parts_lie_beside(tiny, tmp_path):
    config = configured(tiny, "dealrec", influence=SURROGATE, choice={"groups": 3})
    samples, _ = selected(config, tmp_path)
    costs = json.loads((samples.stage.path / "costs.json").read_text())
    assert list(costs) == ["surrogate", "influence", "effort"]
    assert sum(cost["tokens_in"] for cost in costs.values()) == samples.stage.usage.tokens_in > 0
    assert sum(cost["wall_s"] for cost in costs.values()) < samples.stage.usage.wall_s
    assert samples.stage.usage.llm_calls == 2 * samples.selection.budget  # of 40: effort's pool
    table = pl.read_parquet(samples.stage.path / "selection.parquet")
    assert {"influence", "effort", "score"} <= set(table.columns)


def test_a_free_scorer_costs_no_tokens_and_has_no_parts(tiny, tmp_path):
    samples, _ = selected(configured(tiny, "random"), tmp_path)
    assert json.loads((samples.stage.path / "costs.json").read_text()) == {}
    assert samples.stage.usage.tokens_in == samples.stage.usage.llm_calls == 0


def test_influence_alone_counts_its_harmful_rows(tiny, tmp_path):
    samples, _ = selected(configured(tiny, "influence", **SURROGATE), tmp_path)
    about = json.loads((samples.stage.path / "diagnostics.json").read_text())
    scores = samples.selection.scores
    expected = sum(score < 0 for score in scores.tolist()) / len(scores)
    assert about["negative_influence_all"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("noun", "expected"), [("auto", "film"), ("picture", "picture")])
def test_the_noun_of_the_data_reaches_the_prompts_of_effort(tiny, tmp_path, monkeypatch, noun, expected):
    asked = []
    read = Effort._prompt
    monkeypatch.setattr(Effort, "_prompt", lambda self: asked.append(read(self)) or asked[-1])
    config = configured(tiny, "effort", pool=2)
    config = config.model_copy(update={"llm": config.llm.model_copy(update={"noun": noun})})
    samples, prepared = selected(config, tmp_path)
    assert noun_of(config, prepared.dataset) == expected == asked[0].noun
    changed = config.model_copy(update={"llm": config.llm.model_copy(update={"noun": "book"})})
    again, _ = selected(changed, tmp_path)
    assert again.stage.hash != samples.stage.hash and asked[-1].noun == "book"


def test_options_of_the_configuration_come_before_those_of_the_run(tiny, tmp_path):
    own = tmp_path / "own"
    selected(configured(tiny, "effort", pool=2, cache=str(own)), tmp_path / "run")
    assert [path.suffix for path in own.iterdir()] == [".sqlite"]
    with pytest.raises(ConfigError, match="no such field"):
        selected(configured(tiny, "effort", prompt={"nouns": "x"}), tmp_path / "run")
