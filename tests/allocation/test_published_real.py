"""The false gain of the published protocol on MovieLens-100k, and what ours makes of the same random LLM."""

import numpy as np
import pytest

from frugalrec.allocation import Evidence, allocate
from frugalrec.allocation.gain import GainModel, Gains, calibration_slice
from frugalrec.allocation.published import label, published_change, rated_scores
from frugalrec.allocation.signals import user_signals
from frugalrec.data.readers import read
from frugalrec.data.splits import Split
from frugalrec.evaluation.controls import random_permutation
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.recommenders import create

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folds(real_data):
    data = read(real_data / "ml-100k")
    rng = np.random.default_rng(0)
    fold = np.zeros(data.n, dtype=np.int8)
    for start, stop in zip(data.indptr[:-1], data.indptr[1:], strict=True):
        order = start + rng.permutation(stop - start)
        held = (stop - start) // 10
        fold[order[:held]], fold[order[held : 2 * held]] = 1, 2
    train, valid, test = (data.where(fold == f) for f in range(3))
    return Split(method="random 80/10/10", train=train, valid=valid, test=test)


def lengths_of(folds):
    return folds.train.lengths + folds.valid.lengths + folds.test.lengths


def test_random_scores_have_the_published_auc_and_number_of_weak_users(folds):
    users = np.arange(folds.train.n_users, dtype=np.int32)
    scores = np.random.default_rng(1).random((users.size, folds.train.n_items))
    rated = rated_scores(lambda u: scores[u], users, folds.test)
    found = label(rated, lengths_of(folds), folds.train.n_items, rule="below")
    # Over 20 cuts .461 with a standard deviation of .010, and 316 with 13; 78 with 8 of them know nothing.
    assert found.performance.mean() == pytest.approx(0.461, abs=0.03)
    assert found.weak.sum() == pytest.approx(316, abs=39)
    assert (found.weak & found.undefined).sum() == pytest.approx(78, abs=25)


def test_random_llm_gains_under_the_published_protocol_and_gets_nothing_under_ours(folds):
    cheap = create("item-knn", k=100).fit(folds.train)
    users = np.arange(folds.train.n_users, dtype=np.int32)
    rated = rated_scores(cheap.score, users, folds.test)
    dice = np.random.default_rng(2).random(rated.rows.size)
    change = published_change(rated, dice, lengths_of(folds), folds.train.n_items, rule="below")
    assert change.auc_after - change.auc_before == pytest.approx(0.065, abs=0.025)
    assert change.after / change.before - 1 == pytest.approx(-0.37, abs=0.1)
    assert abs(change.after - change.control) < 4 * change.control_sd  # and the control shows it at once

    lists = cheap.recommend(folds.users("valid"), 20, histories=folds.train)
    values = {
        name: evaluate_ranking(name, own, folds.valid, ["ndcg@10"], seen=folds.train)
        for name, own in (("cheap", lists), ("llm", random_permutation(lists, 20, 3)))
    }
    gains = Gains.between(values["llm"], values["cheap"], "ndcg@10", "valid")
    drawn = calibration_slice(gains.users, folds.train.lengths[gains.users], 400)
    rest = np.setdiff1d(gains.users, drawn)
    mine = Gains(users=drawn, values=gains.at(drawn), metric="ndcg@10", fold="valid")
    signals = user_signals(folds.train, lists, m=20)
    model = GainModel().fit(signals, mine, test_users=rest)
    assert model.evidence.effect.high < 0
    bought = allocate(
        "gain-per-cost",
        rest,
        folds.train.lengths[rest],
        evidence=Evidence(gain=model.predict(signals.at(rest))),
    )
    assert bought.spent <= 0.02 * rest.size
