import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import dataset

from frugalrec.allocation.weakness import Threshold, shrink, weak_users
from frugalrec.data.splits import Split
from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.evaluate import fold_ranks


def random_world(seed, n_users=30, n_items=12):
    rng = np.random.default_rng(seed)
    folds = [[], [], []]
    for user in range(n_users):
        items = rng.permutation(n_items)
        n = int(rng.integers(1, n_items))
        held = int(rng.integers(0, 3))
        for i, item in enumerate(items[:n]):
            folds[0 if i >= held or i == 0 else 1].append((user, item))
        folds[2].append((user, items[-1]))
    parts = [dataset(rows, n_users, n_items) for rows in folds]
    scores = rng.integers(0, 4, (n_users, n_items)).astype(float)  # many ties
    return Split(method="hand", train=parts[0], valid=parts[1], test=parts[2]), scores


@pytest.mark.parametrize("seed", range(5))
def test_auc_of_each_user_equals_brute_force_and_is_never_0_where_undefined(seed):
    split, scores = random_world(seed)
    users = np.arange(30)
    ranks = fold_ranks(lambda u: scores[u], split, "valid", users=users)
    label = weak_users(ranks, split.train.lengths)
    for row, user in enumerate(label.users):
        held = set(split.valid.history(user).tolist()) - set(split.train.history(user).tolist())
        others = [i for i in range(12) if i not in held and i not in split.train.history(user)]
        if not held or not others:
            assert np.isnan(label.performance[row]) and label.undefined[row] and not label.weak[row]
            continue
        own = scores[user]
        pairs = [(own[a] > own[b]) + 0.5 * (own[a] == own[b]) for a in held for b in others]
        assert label.performance[row] == pytest.approx(np.mean(pairs))
    assert label.n_undefined == int(np.isnan(label.performance).sum()) > 0


def test_label_does_not_depend_on_the_order_of_users():
    split, scores = random_world(1)
    users = split.users("valid")
    label = weak_users(fold_ranks(lambda u: scores[u], split, "valid", users=users), split.train.lengths)
    order = np.random.default_rng(0).permutation(users.size)
    ranks = fold_ranks(lambda u: scores[u], split, "valid", users=users[order])
    again = weak_users(ranks, split.train.lengths)
    np.testing.assert_allclose(again.shrunk[again.at(label.users)], label.shrunk)
    assert (again.weak[again.at(label.users)] == label.weak).all()


def test_inactive_and_low_by_hand():
    # 4 users with 1, 2, 3, 4 training items of 6; sparsity 5/6, 4/6, 3/6, 2/6, mean 3.5/6
    train = [(u, i) for u in range(4) for i in range(u + 1)]
    held = [(u, 5) for u in range(4)]
    split = Split(
        method="hand", train=dataset(train, 4, 6), valid=dataset(held, 4, 6), test=dataset(held, 4, 6)
    )
    scores = np.zeros((4, 6))
    scores[0, 5] = -1  # user 0 ranks the held-out item last among 5: AUC 0; user 1 first of 4: AUC 1
    scores[1, 5] = 1
    scores[2, 5] = -1
    ranks = fold_ranks(lambda u: scores[u], split, "valid")
    label = weak_users(ranks, split.train.lengths, t_s=Threshold.mean(), t_p=Threshold.value(0.4), kappa=0.0)
    assert label.performance.tolist() == [0.0, 1.0, 0.0, 0.5]
    assert label.t_s == pytest.approx(3.5 / 6)
    assert label.inactive.tolist() == [True, True, False, False]
    assert label.weak.tolist() == [True, False, False, False]
    assert str(label).startswith("1 of 4 users are weak by auc on the valid fold (2 inactive")


def test_other_metrics_label_too():
    split, scores = random_world(2)
    ranks = fold_ranks(lambda u: scores[u], split, "valid")
    assert weak_users(ranks, split.train.lengths, metric="ndcg@5").metric == "ndcg@5"


def test_thresholds():
    values = np.array([1.0, 2.0, np.nan, 6.0])
    assert Threshold.mean().of(values) == 3.0
    assert Threshold.quantile(0.5).of(values) == 2.0
    assert Threshold.value(9).of(values) == 9
    assert Threshold.parse("mean") == Threshold.mean()
    assert Threshold.parse("20%") == Threshold.quantile(0.2)
    assert Threshold.parse("0.5") == Threshold.value(0.5)
    assert np.isnan(Threshold.mean().of(np.array([np.nan])))
    with pytest.raises(ConfigError, match="cannot read the threshold 'low'"):
        Threshold.parse("low")
    with pytest.raises(ConfigError, match="between 0 and 1; got 2"):
        Threshold.parse("200%")


def test_shrinkage_by_hand():
    # One group, kappa 2: weights n/(n+2) = 1/3, 2/3; mean (0/3 + 2/3 * .9) / (1/3 + 2/3) = .6
    # shrunk (1 * 0 + 2 * .6) / 3 = .4 and (4 * .9 + 2 * .6) / 6 = .8; undefined: the mean
    values, counts = np.array([0.0, 0.9, np.nan]), np.array([1, 4, 0])
    shrunk, kappa, source = shrink(values, counts, np.zeros(3, dtype=int), 2.0)
    np.testing.assert_allclose(shrunk, [0.4, 0.8, 0.6])
    assert (kappa, source) == (2.0, "given")


@pytest.mark.parametrize(("truth_sd", "noise_sd"), [(0.1, 0.2), (0.2, 0.2), (0.05, 0.3)])
def test_likelihood_finds_the_noise_and_shrinking_comes_nearer_to_the_truth(truth_sd, noise_sd):
    rng = np.random.default_rng(0)
    n = rng.integers(1, 30, 4000)
    truth = 0.7 + truth_sd * rng.standard_normal(4000)
    values = truth + noise_sd * rng.standard_normal(4000) / np.sqrt(n)
    shrunk, kappa, source = shrink(values, n, rng.integers(0, 10, 4000))
    assert source == "likelihood"
    assert kappa == pytest.approx((noise_sd / truth_sd) ** 2, rel=0.2)
    assert np.mean((shrunk - truth) ** 2) < 0.95 * np.mean((values - truth) ** 2)
    best = min(
        np.mean((shrink(values, n, np.zeros(4000, int), k)[0] - truth) ** 2) for k in (0.5, 1, 2, 4, 9, 36)
    )
    assert np.mean((shrunk - truth) ** 2) < 1.02 * best


def test_equal_counts_cannot_tell_noise_from_truth_and_say_so():
    _, kappa, source = shrink(np.array([0.1, 0.9, 0.5]), np.ones(3), np.zeros(3, dtype=int))
    assert kappa == 1.0 and source.startswith("not identified")


@given(st.integers(0, 1000), st.floats(0, 100))
def test_shrunk_values_lie_between_the_value_and_the_groups_mean(seed, kappa):
    rng = np.random.default_rng(seed)
    values, n = rng.random(20), rng.integers(1, 9, 20)
    groups = rng.integers(0, 3, 20)
    shrunk, _, _ = shrink(values, n, groups, kappa)
    for group in np.unique(groups):
        own = groups == group
        w = n[own] / (n[own] + kappa)
        middle = (w * values[own]).sum() / w.sum()
        low, high = np.minimum(values[own], middle), np.maximum(values[own], middle)
        assert ((shrunk[own] >= low - 1e-12) & (shrunk[own] <= high + 1e-12)).all()


def test_bad_input():
    split, scores = random_world(0)
    with pytest.raises(DataError, match="undefined for all"):
        weak_users(
            fold_ranks(lambda u: scores[u], split, "valid", users=np.flatnonzero(split.valid.lengths == 0)),
            split.train.lengths,
        )
    with pytest.raises(ConfigError, match="not -1"):
        shrink(np.ones(2), np.ones(2), np.zeros(2, dtype=int), -1)
