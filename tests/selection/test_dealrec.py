import numpy as np
import pytest

from frugalrec.data.examples import examples
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError
from frugalrec.llm.local import LocalLM
from frugalrec.selection import create
from frugalrec.selection.combination import normalise
from frugalrec.selection.coverage import stratified
from frugalrec.selection.dealrec import PRESETS
from frugalrec.testing.selection_contract import ScorerContract
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.testing.toys import cycle_dataset

PARTS = split(cycle_dataset(n_users=30, n_items=10, length=8), "leave-last-out")
ROWS = examples(PARTS.train, window=4, min_history=1)
SMALL = {"options": {"embedding_size": 8, "epochs": 2}}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LocalLM.load(
        tiny_llama(tmp_path_factory.mktemp("dealrec") / "llama"), dtype="float32", device="cpu"
    )


def build(lm, **options):
    return create("dealrec", **{"llm": lm, "influence": SMALL, "choice": {"groups": 4}} | options)


@pytest.mark.parametrize("name", ["dealrec"])
class TestContract(ScorerContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm):
        self.lm = lm

    def build(self, name):
        return build(self.lm)


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_the_weighted_sum_of_its_parts(lm, preset):
    scorer = build(lm, preset=preset, valid=PARTS.valid, weight=0.7)
    scores = scorer.score(ROWS, PARTS.train)
    how = PRESETS[preset].normalisation
    parts = {name: normalise(part, how) for name, part in scorer.parts_.items()}
    np.testing.assert_allclose(scores, parts["influence"] + 0.7 * parts["effort"], rtol=1e-5)
    kept = scorer.choose(scores, 9, seed=2)
    strata = {"bins": PRESETS[preset].bins, "groups": 4}
    pruned = {"prune_top": PRESETS[preset].prune_top, "prune_bottom": PRESETS[preset].prune_bottom}
    assert np.array_equal(kept.kept, stratified(scores, 9, seed=2, **strata, **pruned))
    assert kept.scorer == "dealrec" and kept.kept.size == 9


def test_frugal_keeps_the_highest_sums_of_influence_and_ease(lm):
    scorer = build(lm, valid=PARTS.valid, choice={})
    scores = scorer.score(ROWS, PARTS.train)
    parts = {name: normalise(part, "rank") for name, part in scorer.parts_.items()}
    np.testing.assert_allclose(scores, parts["influence"] - parts["effort"], atol=1e-6)
    kept = scorer.choose(scores, 5).kept
    assert scores[kept].min() >= np.sort(scores)[-5]


def test_the_llm_reads_only_what_influence_puts_first(lm):
    scorer = build(lm, valid=PARTS.valid, choice={}, pool=10)
    scores = scorer.score(ROWS, PARTS.train)
    seen = ~np.isnan(scorer.parts_["effort"])
    assert seen.sum() == 10 and np.array_equal(seen, ~np.isnan(scores))
    influence = scorer.parts_["influence"]
    assert influence[seen].min() >= influence[~seen].max()
    parts = [normalise(part[seen], "rank") for part in scorer.parts_.values()]
    np.testing.assert_allclose(scores[seen], parts[0] - parts[1], atol=1e-6)
    assert scorer.scorable(len(ROWS)) == 10


def test_the_pool_of_frugal_is_twice_the_budget_unless_given(lm):
    assert build(lm, budget=4).scorable(30) == 8
    assert build(lm, budget=4, pool=20).scorable(30) == 20
    assert build(lm, budget=40).scorable(30) == build(lm).scorable(30) == 30
    assert build(lm, budget=4, preset="paper").scorable(30) == 30
    assert build(lm, budget=4, effort={"pool": 5}).scorable(30) == 5


def test_choice_options_that_would_do_nothing_are_refused(lm):
    scores = np.arange(30, dtype=np.float32)
    with pytest.raises(ConfigError, match="prune_top needs groups"):
        build(lm, choice={"prune_top": 0.1}).choose(scores, 5)
    with pytest.raises(ConfigError, match="unknown choice option 'group'"):
        build(lm, choice={"group": 3}).choose(scores, 5)
    with pytest.raises(ConfigError, match="pool=0 must be a whole number"):
        build(lm, pool=0).scorable(30)


@pytest.mark.parametrize("choice", [{}, {"groups": 4}])
def test_rows_outside_the_pool_are_never_kept(lm, choice):
    scorer = build(lm, effort={"pool": 12}, choice=choice)
    scores = scorer.score(ROWS, PARTS.train)
    assert (~np.isnan(scores)).sum() == 12
    assert not np.isnan(scores[scorer.choose(scores, 12).kept]).any()
    with pytest.raises(ConfigError, match="budget of 13 rows exceeds the 12"):
        scorer.choose(scores, 13)


def test_progress_runs_over_both_parts(lm):
    told = []
    build(lm, progress=lambda *p: told.append(p)).score(ROWS, PARTS.train)
    assert told[-1] == (2 * len(ROWS), 2 * len(ROWS))
    assert [p[0] for p in told] == sorted(p[0] for p in told)


def test_unknown_preset_is_named(lm):
    with pytest.raises(ConfigError, match="unknown preset 'best'; choose one of frugal, paper, reference"):
        build(lm, preset="best").score(ROWS, PARTS.train)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_call_trains_no_epoch_and_computes_no_batch_twice(lm, tmp_path, monkeypatch):
    from frugalrec.recommenders import training
    from frugalrec.selection.gradient_norms import GradientNorms

    epochs, batches = [], []
    train, norms = training._epoch, GradientNorms.__call__

    def epoch(*arguments):
        epochs.append(arguments[-1])
        return train(*arguments)

    def batch(self, samples):
        batches.append(tuple(sample.tokens for sample in samples))
        return norms(self, samples)

    monkeypatch.setattr(training, "_epoch", epoch)
    monkeypatch.setattr(GradientNorms, "__call__", batch)
    options = {"valid": PARTS.valid, "influence": {"n_surrogates": 2, **SMALL}}
    options |= {"effort": {"max_batch_tokens": 300}}
    unbroken = build(lm, **options)
    whole, planned = unbroken.score(ROWS, PARTS.train), list(batches)
    assert epochs == [1, 2, 1, 2] and len(planned) > 4
    assert set(unbroken.costs_) == {"surrogate", "influence", "effort"}
    epochs.clear()
    batches.clear()

    def kill(done, total):
        if len(batches) == 3:
            raise Killed

    with pytest.raises(Killed):
        build(lm, **options, cache=tmp_path / "cache", progress=kill).score(ROWS, PARTS.train)
    resumed = build(lm, **options, cache=tmp_path / "cache")
    assert np.array_equal(resumed.score(ROWS, PARTS.train), whole, equal_nan=True)
    assert epochs == [1, 2, 1, 2] and batches == planned
    for part in ("tokens_in", "tokens_cached", "llm_calls"):
        spent = [getattr(one.costs_["effort"], part) for one in (unbroken, resumed)]
        assert spent[0] == spent[1]


def test_progress_counts_rows_of_surrogates_and_pool(lm):
    told = []
    options = {"influence": {"n_surrogates": 2, **SMALL}, "effort": {"pool": 5}, "choice": {"groups": 2}}
    build(lm, progress=lambda *p: told.append(p), **options).score(ROWS, PARTS.train)
    assert {total for _, total in told} == {2 * len(ROWS) + 5}
    assert told[-1][0] == 2 * len(ROWS) + 5
