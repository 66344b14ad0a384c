import numpy as np
import pytest
from scipy.stats import binom
from worlds import dataset

from frugalrec.allocation.harm import harm_threshold
from frugalrec.allocation.headroom import check_headroom
from frugalrec.errors import ConfigError, DataError
from frugalrec.types import Ranking


def test_harm_bound_by_the_binomial_distribution():
    scores = np.arange(100)[::-1].astype(float)
    gains = np.where(np.arange(100) < 60, 1.0, -1.0)  # the sixty best scores are never harmed
    found = harm_threshold(scores, gains, alpha=0.1, confidence=0.9)
    # 60 routed, none harmed: the bound solves (1 - p)^60 = .1; 70 routed, 10 harmed is above .1
    assert (found.threshold, found.routed, found.harmed) == (40.0, 60, 0)
    assert found.bound == pytest.approx(1 - 0.1 ** (1 / 60))
    assert binom.cdf(0, 60, found.bound) == pytest.approx(0.1)
    assert "at most 10% of those routed are harmed" in str(found)


def test_no_threshold_is_said_in_words():
    rng = np.random.default_rng(0)
    found = harm_threshold(rng.random(200), rng.choice([-1.0, 1.0], 200), alpha=0.2)
    assert found.threshold is None and found.routed == 20
    assert "no threshold keeps the share" in str(found) and "route nobody" in str(found)
    few = harm_threshold(np.arange(10.0), np.ones(10), alpha=0.05)  # ten users cannot prove 5 %
    assert few.threshold is None


def test_search_stops_at_the_first_failure():
    scores = np.arange(100)[::-1].astype(float)
    gains = np.ones(100)
    gains[10:20] = -1  # bad in the second tenth, good behind: a later pass must not be taken
    found = harm_threshold(scores, gains, alpha=0.25, confidence=0.9)
    assert found.routed == 10


def test_guarantee_holds_over_draws():
    """P(harm | routed) passes alpha in at most 1 - confidence of calibration draws."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(400):
        scores = rng.random(150)
        # Harm falls from .4 at score 0 to 0 at score 1; P(harm | score >= t) = .2 (1 - t) exactly.
        gains = np.where(rng.random(150) < 0.4 * (1 - scores), -1.0, 1.0)
        found = harm_threshold(scores, gains, alpha=0.12, confidence=0.9)
        if found.threshold is not None and 0.2 * (1 - found.threshold) > 0.12:
            broken += 1
    # 400 draws at 10 %: 40 expected at most, standard deviation 6
    assert broken <= 40 + 18


def test_bad_input_of_the_harm_threshold():
    with pytest.raises(ConfigError, match="alpha=0"):
        harm_threshold(np.ones(3), np.ones(3), alpha=0)
    with pytest.raises(DataError, match="none NaN"):
        harm_threshold(np.ones(3), np.array([1, np.nan, 1]))


def lists(rows):
    items = np.array(rows, dtype=np.int32)
    return Ranking(
        users=np.arange(items.shape[0], dtype=np.int32),
        items=items,
        scores=np.tile(np.arange(items.shape[1], 0, -1, dtype=np.float32), (items.shape[0], 1)),
    )


def test_headroom_by_hand():
    # User 0 has the item third of three (hit@1 0, best 1), user 1 first already, user 2 not at all.
    ranking = lists([[0, 1, 2], [3, 1, 2], [0, 1, 2]] * 40)
    targets = dataset([(u, [2, 3, 4][u % 3]) for u in range(120)], 120, 5)
    found = check_headroom(ranking, targets, m=3, metric="hit@1", seen=None)
    assert found.current == pytest.approx(1 / 3) and found.ceiling == pytest.approx(2 / 3)
    assert found.share_with_hit == pytest.approx(2 / 3)
    assert found.reachable.tolist() == [True, False, False] * 40
    assert found.worthwhile and "67% of users" in str(found)


def test_no_headroom_means_spend_nothing():
    ranking = lists([[0, 1], [0, 1]])
    targets = dataset([(0, 4), (1, 4)], 2, 5)
    found = check_headroom(ranking, targets, m=2, metric="hit@1", seen=None)
    assert not found.worthwhile
    assert str(found).startswith("re-ranking has nothing to gain, so spend nothing")


def test_rare_hits_ask_for_wider_candidates():
    ranking = lists([[0, 1]] * 30)
    targets = dataset([(u, 1 if u % 3 == 0 else 4) for u in range(30)], 30, 5)
    assert "widen the candidates first" in str(check_headroom(ranking, targets, 2, "hit@1", seen=None))
