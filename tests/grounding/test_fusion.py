import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import choose_weight, fuse, standard_scores
from frugalrec.types import Ranking


def ranking(items, scores):
    items = np.array(items, dtype=np.int32)
    return Ranking(
        users=np.arange(len(items), dtype=np.int32), items=items, scores=np.array(scores, dtype=np.float32)
    )


def test_standard_scores_by_hand():
    values = np.array([[1.0, 2.0, 3.0, 99.0], [5.0, 5.0, 5.0, 5.0]])
    known = np.array([[True, True, True, False], [True, True, True, True]])
    # mean 2, deviations -1 0 1, standard deviation sqrt(2 / 3) = 0.8165, so -1.2247 0 1.2247
    expected = [[-1.224745, 0.0, 1.224745, 0.0], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(standard_scores(values, known), expected, atol=1e-6)


def test_fused_order_by_hand():
    cheap = ranking([[10, 11, 12, 13]], [[3.0, 2.0, 1.0, 0.5]])
    odds = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    # z(cheap) = 1.22 0 -1.22 and z(llm) = -1.22 0 1.22: below one half the cheap order stays,
    # at one half all tie (cheap order), above it turns round; item 13 is the tail
    for weight, order in [(0.4, [10, 11, 12]), (0.5, [10, 11, 12]), (0.6, [12, 11, 10]), (1.0, [12, 11, 10])]:
        fused = fuse(cheap, odds, weight)
        assert fused.items[0].tolist() == [*order, 13]
        assert fused.scores.tolist() == cheap.scores.tolist()


def test_weight_zero_is_the_cheap_list_bit_for_bit():
    cheap = ranking([[4, 2, -1]], [[1.0, 0.3, -np.inf]])
    fused = fuse(cheap, np.array([[0.0, 9.0, np.nan]], dtype=np.float32), 0.0)
    assert fused.items.tobytes() == cheap.items.tobytes()
    assert fused.scores.tobytes() == cheap.scores.tobytes()


def test_only_the_first_m_move_and_pads_stay_last():
    cheap = ranking([[1, 2, 3, 4], [5, 6, -1, -1]], [[4, 3, 2, 1], [2, 1, -np.inf, -np.inf]])
    odds = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 5.0, np.nan, np.nan]], dtype=np.float32)
    assert fuse(cheap, odds, 1.0, m=2).items.tolist() == [[2, 1, 3, 4], [6, 5, -1, -1]]
    assert fuse(cheap, odds, 1.0).items.tolist() == [[4, 3, 2, 1], [6, 5, -1, -1]]


def test_user_without_llm_scores_keeps_the_cheap_list():
    cheap = ranking([[1, 2, 3]], [[3, 2, 1]])
    odds = np.full((1, 3), np.nan, dtype=np.float32)
    for weight in (0.3, 1.0):
        assert fuse(cheap, odds, weight).items.tolist() == [[1, 2, 3]]


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 6))
def test_fusion_permutes_the_head_and_ignores_scale_and_offset(seed, weight, m):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(20)[:6] for _ in range(5)]).astype(np.int32)
    cheap = ranking(items, -np.sort(-rng.normal(size=(5, 6)), axis=1))
    odds = rng.normal(size=(5, 6)).astype(np.float32)
    fused = fuse(cheap, odds, weight, m)
    assert (np.sort(fused.items[:, :m], axis=1) == np.sort(items[:, :m], axis=1)).all()
    assert (fused.items[:, m:] == items[:, m:]).all()
    assert (np.diff(fused.scores, axis=1) <= 0).all()
    scaled = fuse(cheap, 4 * odds + 2, weight, m)
    assert (scaled.items == fused.items).all()
    for row in range(5):  # the naive loop
        a, b = cheap.scores[row, :m].astype(float), odds[row, :m].astype(float)
        za = (a - a.mean()) / a.std() if m > 1 else a * 0
        zb = (b - b.mean()) / b.std() if m > 1 else b * 0
        naive = {int(i): (1 - weight) * x + weight * y for i, x, y in zip(items[row], za, zb, strict=False)}
        values = [naive[int(i)] for i in fused.items[row, :m]]
        assert all(x >= y - 1e-6 for x, y in zip(values, values[1:], strict=False))


def test_choose_weight_takes_the_best_and_the_smaller_on_ties():
    values = {0.0: 0.2, 0.5: 0.3, 0.8: 0.3, 1.0: 0.1}
    choice = choose_weight([1.0, 0.8, 0.5, 0.0], values.__getitem__)
    assert choice.weight == 0.5
    assert choice.values == values


def test_bad_input_names_the_value():
    cheap = ranking([[1, 2]], [[2, 1]])
    with pytest.raises(ConfigError, match="not 1.5"):
        fuse(cheap, np.zeros((1, 2), np.float32), 1.5)
    with pytest.raises(DataError, match=r"got \(3, 2\)"):
        fuse(cheap, np.zeros((3, 2), np.float32), 0.5)
    with pytest.raises(ConfigError, match="empty"):
        choose_weight([], lambda weight: 0.0)
    with pytest.raises(DataError, match="undefined"):
        choose_weight([0.0], lambda weight: float("nan"))
