import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.selection.combination import combine, normalise
from frugalrec.selection.coverage import stratified
from frugalrec.selection.diagnostics import agreement, describe, overlap, quantile_histogram


def naive_stratified_counts(scores, size, groups):
    """How many rows each group gives, by the published loop over groups of equal width."""
    scores = np.sort(scores)
    width = (scores[-1] - scores[0]) / groups
    number = [min(int((s - scores[0]) / width), groups - 1) for s in scores]
    sizes = [number.count(g) for g in range(groups) if g in number]
    counts = []
    for place, group in enumerate(sorted(sizes)):
        take = min(size // (len(sizes) - place), group)
        counts.append(take)
        size -= take
    return sorted(counts)


@settings(max_examples=60, deadline=None)
@given(st.integers(12, 200), st.integers(1, 10), st.sampled_from(["quantile", "width"]), st.data())
def test_groups_give_what_the_published_loop_gives(n, groups, bins, data):
    rng = np.random.default_rng(n)
    scores = rng.integers(0, 64, n) / 8.0  # exact in binary: no edge is a matter of rounding
    scores[:2] = 0.0, 8.0
    groups = [1, 2, 4, 8][groups % 4] if bins == "width" else groups
    size = data.draw(st.integers(1, n))
    kept = stratified(scores, size, groups=groups, bins=bins, seed=3)
    assert kept.size == size and np.unique(kept).size == size and (np.diff(kept) > 0).all()
    if bins == "width":
        edges = np.linspace(0, 8, groups + 1)
        number = np.clip(np.digitize(scores, edges) - 1, 0, groups - 1)
        found = sorted(int((number[kept] == g).sum()) for g in np.unique(number))
        assert found == naive_stratified_counts(scores, size, groups)


def test_equal_groups_give_equal_shares_whatever_the_scale():
    rng = np.random.default_rng(0)
    scores = rng.lognormal(size=1000) ** 3
    kept = stratified(scores, 100, groups=10, seed=1)
    np.testing.assert_allclose(quantile_histogram(scores, kept), 0.1)
    assert np.array_equal(kept, stratified(np.log(scores), 100, groups=10, seed=1))
    assert not np.array_equal(kept, stratified(scores, 100, groups=10, seed=2))


def test_small_groups_are_taken_whole():
    scores = np.array([0.0] * 3 + [5.0] * 100 + [10.0] * 2)
    kept = stratified(scores, 50, groups=3, bins="width", seed=0)
    assert np.isin([0, 1, 2, 103, 104], kept).all()
    assert kept.size == 50


def test_pruned_tails_and_undefined_rows_are_never_kept():
    scores = np.arange(100.0)
    scores[::10] = np.nan  # 90 rows with a score
    kept = stratified(scores, 40, groups=5, prune_top=0.1, prune_bottom=0.2, seed=0)
    known = np.sort(scores[~np.isnan(scores)])
    assert scores[kept].min() >= known[18] and scores[kept].max() <= known[80]
    everything = stratified(scores, 90, groups=9)
    assert np.array_equal(everything, np.flatnonzero(~np.isnan(scores)))


def test_every_row_has_the_same_chance_inside_a_group():
    scores = np.arange(20.0)
    counts = np.zeros(20)
    for seed in range(600):
        counts[stratified(scores, 5, groups=4, seed=seed)] += 1
    assert abs(counts / 600 - 0.25).max() < 0.1  # 5.6 standard errors
    ties = np.zeros(20)
    same = np.r_[np.zeros(19), 1.0]
    for seed in range(600):
        ties[stratified(same, 5, groups=4, seed=seed)] += 1
    assert abs(ties[:19] / 600 - ties[:19].mean() / 600).max() < 0.1  # row numbers carry no weight


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scores": np.ones(10)}, DataError, "all 10 scores are 1"),
        ({"scores": np.r_[np.inf, np.arange(9.0)]}, DataError, "row 0 is infinite"),
        ({"scores": np.full(10, np.nan)}, DataError, "none of the 10 rows"),
        ({"scores": np.zeros((2, 2))}, DataError, "one value per row"),
        ({"groups": 11}, ConfigError, "groups=11"),
        ({"groups": 0}, ConfigError, "groups=0"),
        ({"bins": "sturges"}, ConfigError, "sturges"),
        ({"prune_top": 0.6, "prune_bottom": 0.4}, ConfigError, "prune_bottom=0.4"),
        ({"budget": 8, "prune_top": 0.3}, ConfigError, "budget of 8 rows exceeds the 7"),
        ({"budget": "none"}, ConfigError, "budget"),
    ],
)
def test_bad_input_is_named(change, error, words):
    options = {"scores": np.arange(10.0), "budget": 3, "groups": 2} | change
    with pytest.raises(error, match=words):
        stratified(**options)


def test_normalisations_by_hand():
    scores = np.array([4.0, np.nan, 1.0, 1.0, 10.0])
    np.testing.assert_allclose(normalise(scores), [0.75, np.nan, 0.375, 0.375, 1.0])
    np.testing.assert_allclose(normalise(scores, "minmax"), [1 / 3, np.nan, 0, 0, 1])
    np.testing.assert_allclose(normalise(scores, "zscore")[[0, 2]], np.array([0.0, -3.0]) / np.sqrt(13.5))
    assert np.array_equal(normalise(scores, "none"), scores, equal_nan=True)
    for how in ("rank", "minmax", "zscore"):  # a change of scale changes nothing
        np.testing.assert_allclose(normalise(7 * scores - 3, how), normalise(scores, how))
    np.testing.assert_allclose(normalise(np.exp(scores)), normalise(scores))  # ranks: nor any monotone one


def test_combination_is_the_weighted_sum_and_undefined_where_a_part_is():
    parts = {"influence": np.array([1.0, 2.0, np.nan, 4.0]), "effort": np.array([4.0, np.nan, 2.0, 1.0])}
    found = combine(parts, {"influence": 1.0, "effort": 0.5})
    np.testing.assert_allclose(found, [1 / 3 + 0.5, np.nan, np.nan, 1 + 0.5 / 3])
    with pytest.raises(ConfigError, match="one weight"):
        combine(parts, {"influence": 1.0})
    with pytest.raises(DataError, match="effort: all 2 scores"):
        combine({"influence": np.arange(2.0), "effort": np.ones(2)}, {"influence": 1, "effort": 1})
    with pytest.raises(DataError, match="different numbers"):
        combine({"a": np.arange(2.0), "b": np.arange(3.0)}, {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="softmax"):
        normalise(np.arange(3.0), "softmax")


def test_diagnostics_by_hand():
    influence = np.array([-1.0, 2.0, np.nan, -3.0, 5.0], dtype=np.float32)
    about = describe(influence, np.array([0, 4]), influence=influence, others=[np.array([0, 1])])
    assert about["negative_influence_kept"] == 0.5 == about["negative_influence_all"]
    assert about["overlap"] == [0.5] and about["undefined"] == 1 and about["kept_undefined"] == 0
    assert sum(about["deciles"]) == 1
    assert overlap(np.arange(3), np.arange(3)) == 1
    assert agreement(np.array([1, 2, np.nan, 4]), np.array([10, 20, 0, 40])) == pytest.approx(1)
    with pytest.raises(DataError, match="no kept row"):
        quantile_histogram(influence, np.array([2]))
