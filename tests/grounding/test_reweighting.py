import doctest
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.grounding import reweighting as module
from frugalrec.grounding.reweighting import (
    GAMMAS,
    choose_gamma,
    gamma_ranks,
    popularity_weights,
    reweight,
    score_weights,
)
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=12, n_items=20, length=3, noise=0.5)
USERS = np.array([7, 0, 11, 3, 5], dtype=np.int32)


def sample(seed, *, ties=False, wide=True):
    rng = np.random.default_rng(seed)
    distances = rng.gamma(3.0, size=(USERS.size, DATA.n_items))
    weights = rng.random(distances.shape if wide else DATA.n_items)
    if ties:  # items that share a title have one distance, and may share their weight
        distances[:, 10:] = distances[:, :10]
        weights[..., 10:15] = weights[..., :5]
        weights = np.round(weights, 1)
    return distances, weights


def test_a_row_by_hand():
    # (D - 2) / (6 - 2) = 0, 0.5, 1; times (1 + W) ** -2 with W = 0, 1, 0.25: 0, 0.5 / 4, 1 / 1.5625
    found = reweight(np.array([[2.0, 4.0, 6.0]]), np.array([0.0, 1.0, 0.25]), 2.0)
    np.testing.assert_allclose(found, [[0.0, 0.125, 0.64]])
    # From zero: 2 / 6, 4 / 6 / 4, 6 / 6 / 1.5625: the second is first now
    found = reweight(np.array([[2.0, 4.0, 6.0]]), np.array([0.0, 1.0, 0.25]), 2.0, origin="zero")
    np.testing.assert_allclose(found, [[1 / 3, 1 / 6, 0.64]])


@pytest.mark.parametrize("origin", ["nearest", "zero"])
@pytest.mark.parametrize(("ties", "wide"), [(False, True), (False, False), (True, True), (True, False)])
def test_all_gammas_at_once_are_one_ranking_each(ties, wide, origin):
    seen = DATA.where(DATA.items % 3 == 0)
    targets = DATA.where(DATA.items % 3 != 0)
    distances, weights = sample(1, ties=ties, wide=wide)
    gammas = [0.0, 0.01, 0.3, 1.0, 2.5, 99.0]
    found = gamma_ranks(distances, weights, gammas, USERS, targets, seen=seen, origin=origin)
    place = {int(user): row for row, user in enumerate(USERS)}
    masked = distances.copy()
    for row, user in enumerate(USERS):
        masked[row, seen.history(int(user))] = np.inf
    assert list(found) == gammas
    for gamma, ranks in found.items():
        values = reweight(masked, weights, gamma, origin=origin)
        expected = target_ranks(lambda u, v=values: -v[[place[int(x)] for x in u]], USERS, targets, seen=seen)  # noqa: B023
        for name in ("users", "indptr", "items", "better", "tied", "n_candidates"):
            np.testing.assert_array_equal(
                getattr(ranks, name), getattr(expected, name), err_msg=f"{gamma} {name}"
            )
        np.testing.assert_allclose(parse_metric("ndcg@5")(ranks), parse_metric("ndcg@5")(expected))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_counts_are_those_of_comparing_every_item(seed):
    distances, weights = sample(seed, ties=seed % 2 == 0)
    distances[:, seed % 20] = distances[:, (seed + 7) % 20] = np.inf
    found = gamma_ranks(distances, weights, GAMMAS[::20], USERS, DATA)
    for gamma, ranks in found.items():
        values = reweight(distances, weights, gamma)
        for pair, item in enumerate(ranks.items):
            row = values[ranks.rows[pair]]
            assert ranks.better[pair] == (row < row[item]).sum()
            # Equal distances and weights tie exactly; rounding may part others that should.
            assert ranks.tied[pair] == (row == row[item]).sum() - 1


@given(st.integers(0, 500), st.sampled_from(GAMMAS))
def test_the_farthest_distance_does_not_matter(seed, gamma):
    distances, weights = sample(seed)
    farther = np.concatenate([distances, np.full((len(distances), 1), 1e4)], axis=1)
    more = np.concatenate([weights, np.zeros((len(weights), 1))], axis=1)
    one, other = reweight(distances, weights, gamma), reweight(farther, more, gamma)[:, :-1]
    np.testing.assert_array_equal(np.argsort(one, axis=1), np.argsort(other, axis=1))


@given(st.integers(0, 500), st.sampled_from(GAMMAS))
def test_the_nearest_item_stays_first(seed, gamma):
    distances, weights = sample(seed)
    np.testing.assert_array_equal(
        reweight(distances, weights, gamma).argmin(axis=1), distances.argmin(axis=1)
    )


@given(st.integers(0, 500), st.sampled_from(GAMMAS))
def test_a_factor_lies_between_a_bound_and_one(seed, gamma):
    distances, weights = sample(seed)
    plain, moved = reweight(distances, weights, 0.0), reweight(distances, weights, gamma)
    assert (moved <= plain).all() and (moved >= plain * 2.0**-gamma * (1 - 1e-12)).all()


def test_counted_from_zero_even_the_first_can_move():
    distances, weights = np.array([[1.0, 1.1]]), np.array([0.0, 1.0])
    assert reweight(distances, weights, 5.0).argmin() == 0
    assert reweight(distances, weights, 5.0, origin="zero").argmin() == 1


def test_weights_are_stretched_to_one():
    np.testing.assert_allclose(popularity_weights(np.array([4, 4, 8, 5])), [0, 0, 1, 0.25])
    np.testing.assert_allclose(
        score_weights(np.array([[-1.0, 3.0, -np.inf, 1.0], [5.0, 5.0, -np.inf, 5.0], [-np.inf] * 4])),
        [[0, 1, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]],
    )


def test_one_gamma_is_chosen_by_one_metric_and_ties_go_to_the_smaller():
    distances, weights = sample(4)
    ranks = gamma_ranks(distances, weights, [2.0, 0.0, 0.5], USERS, DATA)
    choice = choose_gamma(ranks, "recall@5")
    expected = {gamma: float(np.mean(parse_metric("recall@5")(own))) for gamma, own in ranks.items()}
    assert choice.values == expected
    assert choice.weight == min(g for g, value in expected.items() if value == max(expected.values()))
    flat = gamma_ranks(distances, np.zeros(DATA.n_items), [3.0, 1.0], USERS, DATA)
    assert choose_gamma(flat).weight == 1.0


def test_users_and_items_may_come_in_any_order():
    distances, weights = sample(5)
    order, codes = np.array([2, 4, 0, 1, 3]), np.random.default_rng(0).permutation(DATA.n_items)
    renamed = replace(DATA, items=codes[DATA.items].astype(np.int32))
    back = np.argsort(codes)
    one = gamma_ranks(distances, weights, [0.7], USERS, DATA)[0.7]
    other = gamma_ranks(distances[order][:, back], weights[order][:, back], [0.7], USERS[order], renamed)[0.7]
    for row, was in enumerate(order):
        mine, its = slice(*one.indptr[was : was + 2]), slice(*other.indptr[row : row + 2])
        np.testing.assert_array_equal(one.better[mine], other.better[its])


def test_bad_input_is_named():
    distances, weights = sample(6)
    with pytest.raises(DataError, match=r"need weights .*; got \(5, 20\) and \(7,\)"):
        reweight(distances, np.zeros(7), 1.0)
    with pytest.raises(DataError, match="weights must lie between 0 and 1"):
        reweight(distances, weights * 3, 1.0)
    with pytest.raises(DataError, match="distances must be 0 or more"):
        reweight(-distances, weights, 1.0)
    with pytest.raises(ConfigError, match="gamma must be a number of at least 0"):
        reweight(distances, weights, -1.0)
    with pytest.raises(ConfigError, match="gamma must be"):
        gamma_ranks(distances, weights, [], USERS, DATA)
    with pytest.raises(ConfigError, match="origin must be nearest or zero, not 'middle'"):
        reweight(distances, weights, 1.0, origin="middle")
    with pytest.raises(DataError, match="one row of distances for each of 2 users; got 5"):
        gamma_ranks(distances, weights, [1.0], USERS[:2], DATA)
    with pytest.raises(DataError, match="NaN"):
        score_weights(np.array([[np.nan, 1.0]]))


def test_the_example_in_the_docstring():
    assert doctest.testmod(module).failed == 0
