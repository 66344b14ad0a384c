import numpy as np
import pytest
from worlds import dataset

from frugalrec.allocation.stability import WeakCounts, count_weak, stability
from frugalrec.allocation.weakness import Weakness
from frugalrec.errors import ConfigError, DataError
from frugalrec.types import Ranking


def label(users, inactive, low, performance=None, metric="auc", fold="valid"):
    users = np.asarray(users, dtype=np.int32)
    values = np.zeros(users.size) if performance is None else np.asarray(performance, float)
    return Weakness(
        users=users,
        metric=metric,
        fold=fold,
        performance=values,
        shrunk=values,
        undefined=np.isnan(values),
        sparsity=np.ones(users.size),
        inactive=np.asarray(inactive, dtype=bool),
        low=np.asarray(low, dtype=bool),
        t_s=0.0,
        t_p=0.0,
        kappa=0.0,
        kappa_from="given",
    )


def test_lift_by_hand():
    # Inactive users 0..5; weak on valid 0, 1, 2; weak on test 0, 1, 3: base 3/6, conditional 2/3, lift 4/3
    inactive = [1, 1, 1, 1, 1, 1, 0]
    first = label(range(7), inactive, [1, 1, 1, 0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 9.0])
    second = label(
        [6, 5, 4, 3, 2, 1, 0], inactive[::-1], [0, 0, 0, 1, 0, 1, 1], [9, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )
    report = stability(first, second)
    assert (report.n, report.base_rate, report.conditional) == (6, 0.5, pytest.approx(2 / 3))
    assert report.lift == pytest.approx(4 / 3)
    assert report.correlation == pytest.approx(1.0)
    assert not report.informative  # six users prove nothing
    assert str(report).startswith("the lift cannot be told from 1 with so few users")


@pytest.mark.parametrize(("share", "informative"), [(0.0, False), (0.9, True)])
def test_words_tell_chance_from_a_label_that_repeats_itself(share, informative):
    rng = np.random.default_rng(0)
    truth = rng.random(2000)
    values = [share * truth + (1 - share) * rng.random(2000) for _ in range(2)]
    folds = [label(range(2000), np.ones(2000), v < np.quantile(v, 0.3), v) for v in values]
    report = stability(*folds)
    assert report.informative is informative
    assert str(report).startswith("the label repeats itself" if informative else "the lift is about 1")
    assert report.low < report.lift < report.high
    assert report.correlation == pytest.approx(0.0 if share == 0 else 1.0, abs=0.06)


def test_stability_needs_one_metric_and_some_users():
    first = label([0, 1], [1, 1], [1, 0])
    with pytest.raises(ConfigError, match="not auc and ndcg@10"):
        stability(first, label([0, 1], [1, 1], [1, 0], metric="ndcg@10"))
    with pytest.raises(DataError, match="share 0 inactive"):
        stability(first, label([5, 6], [1, 1], [1, 0]))
    assert "too few" in str(stability(first, label([0, 1], [1, 1], [0, 0])))


def world(n=400, m=10, seed=0):
    """Lists of ten items with the one held-out item at a random place."""
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(30)[:m] for _ in range(n)]).astype(np.int32)
    held = items[np.arange(n), rng.integers(m, size=n)]
    targets = dataset([(u, int(i)) for u, i in enumerate(held)], n, 30)
    lists = Ranking(
        users=np.arange(n, dtype=np.int32),
        items=items,
        scores=np.tile(np.arange(m, 0, -1, dtype=np.float32), (n, 1)),
    )
    return lists, targets, held


def shuffled(ranking, seed):
    rng = np.random.default_rng(seed)
    return Ranking(
        users=ranking.users,
        items=np.stack([rng.permutation(row) for row in ranking.items]),
        scores=ranking.scores,
    )


def test_a_random_treatment_of_the_weak_looks_good_and_its_control_says_why():
    lists, targets, _ = world()
    own = label(lists.users, np.ones(400), np.ones(400))
    before = count_weak(
        "no-op", lists, lists, own, np.ones(400), targets, seen=None, m=10, metric="mrr", threshold=0.2
    )
    assert before.before == before.after
    places = np.argmax(lists.items == targets.items[:, None], axis=1) + 1
    weak = 1 / places <= 0.2
    assert before.before == int(weak.sum())
    # Treat only the users picked for their bad result: any new order heals about four in ten (places 1 to 4).
    found = count_weak(
        "dice", lists, shuffled(lists, 1), own, weak, targets, seen=None, m=10, metric="mrr", threshold=0.2
    )
    assert isinstance(found, WeakCounts)
    assert found.after < 0.7 * found.before
    assert abs(found.control - 0.6 * found.before) < 3 * found.control_sd
    assert "some random order does as well" in str(found)


def test_an_arm_that_finds_the_items_beats_its_control():
    lists, targets, held = world()
    best = lists.items.copy()
    for row, item in zip(best, held, strict=True):
        row[:] = [item, *[i for i in row if i != item]]
    oracle = Ranking(users=lists.users, items=best, scores=lists.scores)
    own = label(lists.users, np.ones(400), np.ones(400))
    found = count_weak(
        "oracle", lists, oracle, own, np.ones(400), targets, seen=None, m=10, metric="mrr", threshold=0.2
    )
    assert found.after == 0 < found.control_min
    assert "as well" not in str(found)


def test_only_inactive_and_treated_users_change_the_count():
    lists, targets, held = world(20)
    best = np.stack([[held[u], *[i for i in lists.items[u] if i != held[u]]] for u in range(20)])
    oracle = Ranking(users=lists.users, items=best.astype(np.int32), scores=lists.scores)
    inactive = np.arange(20) < 10
    treated = np.arange(20) % 2 == 0
    own = label(lists.users, inactive, np.ones(20))
    found = count_weak(
        "x", lists, oracle, own, treated, targets, seen=None, m=10, metric="mrr", threshold=0.5
    )
    places = np.argmax(lists.items == held[:, None], axis=1) + 1
    weak = inactive & (1 / places <= 0.5)
    assert (found.before, found.after) == (int(weak.sum()), int((weak & ~treated).sum()))


def test_count_weak_refuses_other_users_and_no_control():
    lists, targets, _ = world(20)
    own = label(lists.users, np.ones(20), np.ones(20))
    with pytest.raises(DataError, match="same users in the same order"):
        count_weak("x", lists, lists.take(np.arange(19)), own, np.ones(20), targets, seen=None, m=10)
    with pytest.raises(ConfigError, match="at least 1 random order, not 0"):
        count_weak("x", lists, lists, own, np.ones(20), targets, seen=None, m=10, draws=0)
