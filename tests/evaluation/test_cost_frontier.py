import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.errors import ConfigError, DataError
from frugalrec.evaluation.frontier import Trial, frontier
from frugalrec.types import Evaluation


def trial(cheap, llm, costs=None, users=None):
    n = len(cheap)
    return Trial(
        users=np.arange(n, dtype=np.int32) if users is None else np.asarray(users, dtype=np.int32),
        cheap=np.asarray(cheap, float),
        llm=np.asarray(llm, float),
        costs=np.ones(n) if costs is None else np.asarray(costs, float),
    )


def test_curve_by_hand():
    # Gains .4, 0, -.1, .1 of 4 users at cost 1, 1, 2, 4: gap .1; order 0, 3, 1, 2
    # corners (share, gain): (0, 0) (1/8, .1) (5/8, .125) (6/8, .125) (1, .1)
    world = trial([0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.2, 0.5], [1, 1, 2, 4])
    found = frontier([world], {"p": [np.array([9.0, 2.0, 1.0, 3.0])]}, resamples=10)
    curve = found.curves["p"]
    area = (0 + 0.1) / 2 / 8 + (0.1 + 0.125) / 2 * 4 / 8 + 0.125 / 8 + (0.125 + 0.1) / 2 * 2 / 8
    assert curve.area.mean == pytest.approx(area)
    assert curve.apgr.mean == pytest.approx(area / 0.1)
    assert (found.cheap, found.llm) == (pytest.approx(0.25), pytest.approx(0.35))
    assert curve.quality[[0, 10, 20]] == pytest.approx([0.25, 0.25 + 0.1 + 0.025 * 3 / 4, 0.35])
    # 20 % of the gap (.02) after a fifth of the first step, 95 % after .95 of it
    assert curve.needed == pytest.approx({0.2: 0.025, 0.5: 0.0625, 0.8: 0.1, 0.95: 0.95 / 8})
    assert curve.recovered[0.5].mean == pytest.approx((0.1 + 0.025 * 3 / 4) / 0.1)
    assert curve.spent == 1.0


def test_a_policy_that_rules_users_out_spends_no_more_and_keeps_its_gain():
    world = trial([0, 0, 0, 0], [0.4, 0.2, -0.2, -0.2])
    found = frontier([world], {"p": [np.array([2.0, 1.0, -np.inf, -np.inf])]}, resamples=10)
    curve = found.curves["p"]
    # (0, 0) (1/4, .1) (2/4, .15), then flat; gap .05: recovered three times over
    assert curve.spent == 0.5
    assert curve.area.mean == pytest.approx(0.05 / 4 + 0.125 / 4 + 0.15 / 2)
    assert curve.recovered[1.0].mean == pytest.approx(3.0)
    assert curve.needed[0.95] == pytest.approx(0.0475 / 0.4)
    nobody = frontier([world], {"p": [np.full(4, -np.inf)]}, resamples=10).curves["p"]
    assert nobody.area.mean == 0 and nobody.needed[0.2] == np.inf and nobody.spent == 0


def random_world(seed, n=30):
    rng = np.random.default_rng(seed)
    cheap = rng.random(n)
    return trial(cheap, cheap + rng.normal(0.05, 0.2, n), rng.lognormal(0, 1, n)), rng


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_area_equals_a_plain_integral_under_ties(seed, levels):
    """The tied line is the mean over orders where costs are equal; integrate it on a fine grid."""
    world, rng = random_world(seed)
    world = trial(world.cheap, world.llm)
    scores = rng.integers(0, levels, 30).astype(float)
    area = frontier([world], {"p": [scores]}, resamples=1).curves["p"].area.mean
    orders = []
    for _ in range(400):
        order = np.lexsort((rng.random(30), -scores))
        gain = np.concatenate([[0], np.cumsum((world.llm - world.cheap)[order])]) / 30
        orders.append(((gain[1:] + gain[:-1]) / 2).mean())
    assert area == pytest.approx(np.mean(orders), abs=5 * np.std(orders) / np.sqrt(400) + 1e-12)


@pytest.mark.slow
def test_random_orders_recover_half_and_the_oracle_most():
    world, rng = random_world(0, n=200)
    delta = world.llm - world.cheap
    assert delta.sum() > 0
    randoms = [
        frontier([world], {"r": [rng.random(200)]}, resamples=1).curves["r"].apgr.mean for _ in range(120)
    ]
    spread = np.std(randoms) / np.sqrt(120)
    assert np.mean(randoms) == pytest.approx(0.5, abs=5 * spread)
    tied = frontier([world], {"r": [np.zeros(200)]}, resamples=1).curves["r"]
    assert tied.apgr.mean == pytest.approx(0.5)
    oracle = np.where(delta > 0, delta / world.costs, -np.inf)
    best = frontier([world], {"o": [oracle]}, resamples=1).curves["o"].apgr.mean
    assert best > max(randoms)
    whole = frontier([world], {"o": [delta / world.costs]}, resamples=1).curves["o"]
    assert max(randoms) < whole.apgr.mean <= best
    assert whole.quality[-1] == pytest.approx(world.llm.mean())


def test_order_of_users_does_not_matter_at_all():
    world, rng = random_world(3)
    scores = rng.random(30)
    order = rng.permutation(30)
    moved = trial(world.cheap[order], world.llm[order], world.costs[order], users=order)
    one = frontier([world], {"p": [scores]}, resamples=50)
    two = frontier([moved], {"p": [scores[order]]}, resamples=50)
    assert one.curves["p"].area.low == pytest.approx(two.curves["p"].area.low)
    assert one.curves["p"].area.mean == pytest.approx(two.curves["p"].area.mean)
    np.testing.assert_allclose(one.samples["p"], two.samples["p"])


def test_seeds_are_averaged_and_resampled_together():
    a, rng = random_world(5)
    b, _ = random_world(6)
    scores = [rng.random(30), rng.random(30)]
    both = frontier([a, b], {"p": scores}, resamples=200)
    single = [frontier([w], {"p": [s]}, resamples=200) for w, s in zip((a, b), scores, strict=True)]
    assert both.curves["p"].area.mean == pytest.approx(np.mean([f.curves["p"].area.mean for f in single]))
    assert both.gap.mean == pytest.approx(np.mean([f.gap.mean for f in single]))
    np.testing.assert_allclose(both.samples["p"], np.mean([f.samples["p"] for f in single], axis=0))
    assert both.n_trials == 2


def test_differences_are_paired_over_the_same_resamples():
    world, rng = random_world(0, n=300)
    delta = world.llm - world.cheap
    good, bad = delta + rng.normal(0, 0.1, 300), rng.random(300)
    near = good + rng.normal(0, 0.01, 300)
    found = frontier([world], {"good": [good], "bad": [bad], "same": [good], "near": [near]}, resamples=300)
    for measure in ("apgr", "area"):
        gap = found.difference("good", "bad", measure)
        curves = [getattr(found.curves[name], measure) for name in ("good", "bad")]
        assert gap.mean == pytest.approx(curves[0].mean - curves[1].mean) and gap.low > 0
        nothing = found.difference("good", "same", measure)
        assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    # Two policies that hardly differ share the luck of a resample: the difference is far surer than either.
    alike, own = found.difference("good", "near", "area"), found.curves["good"].area
    assert alike.high - alike.low < (own.high - own.low) / 4
    with pytest.raises(ConfigError, match="no curve of 'best'; there are good, bad, same, near"):
        found.difference("best", "bad")


@pytest.mark.slow
def test_interval_of_the_area_covers_the_truth():
    """Coverage over worlds: the expected area of a fixed rule in a large population."""
    rng = np.random.default_rng(0)

    def draw(n):
        x = rng.standard_normal(n)
        return trial(np.zeros(n), 0.05 + 0.1 * x + rng.normal(0, 0.2, n)), x

    big, x = draw(200_000)
    truth = frontier([big], {"p": [x]}, resamples=1).curves["p"].area.mean
    inside = 0
    for seed in range(60):
        world, x = draw(150)
        area = frontier([world], {"p": [x]}, resamples=200, seed=seed).curves["p"].area
        inside += area.low <= truth <= area.high
    assert inside >= 50  # 95 % of 60 is 57, standard deviation 1.7


def test_no_gap_is_undefined_and_said_in_words():
    world = trial([0.5, 0.5, 0.5], [0.4, 0.6, 0.4])
    found = frontier([world], {"p": [np.array([1.0, 3.0, 2.0])]}, resamples=100)
    curve = found.curves["p"]
    assert not found.defined and np.isnan(curve.apgr.mean) and np.isnan(curve.needed[0.5])
    assert np.isfinite(curve.area.mean) and np.isnan(found.difference("p", "p").mean)
    assert "gains nothing" in str(found) and "undefined" in str(found)


def test_an_unproven_gap_has_no_finite_interval():
    rng = np.random.default_rng(0)
    world = trial(np.zeros(50), rng.normal(0.001, 1, 50) - rng.normal(0.001, 1, 50) * 0)
    llm = world.llm - world.llm.mean() + 0.01
    found = frontier([trial(world.cheap, llm)], {"p": [rng.random(50)]}, resamples=200)
    apgr = found.curves["p"].apgr
    assert found.undefined > 0.1 and np.isfinite(apgr.mean) and np.isnan(apgr.low)
    assert "not proven" in str(found)


def test_trials_pair_arms_by_user():
    def arm(users, values):
        return Evaluation(arm="x", users=np.array(users, dtype=np.int32), values={"m": np.array(values)})

    found = Trial.of(
        arm([3, 1, 2], [0.3, 0.1, np.nan]), arm([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8]), "m", {1: 2, 3: 5}
    )
    assert found.users.tolist() == [1, 3]
    assert (found.cheap.tolist(), found.llm.tolist(), found.costs.tolist()) == (
        [0.1, 0.3],
        [0.5, 0.7],
        [2, 5],
    )
    assert Trial.of(arm([1], [0.1]), arm([1], [0.2]), "m").costs.tolist() == [1]


def test_bad_input():
    world, rng = random_world(0)
    with pytest.raises(DataError, match="all costs are 0"):
        trial([0.0], [1.0], [0.0])
    with pytest.raises(DataError, match="finite and costs at least 0"):
        trial([np.nan], [1.0])
    with pytest.raises(DataError, match="one value of either arm"):
        trial([0.0, 1.0], [1.0])
    with pytest.raises(DataError, match="none of them NaN"):
        frontier([world], {"p": [np.ones(29)]})
    with pytest.raises(DataError, match="at least one trial"):
        frontier([], {})
    with pytest.raises(DataError, match="same users"):
        frontier([world, random_world(0, 20)[0]], {})
    with pytest.raises(DataError, match="more than once"):
        frontier([trial([0, 1], [1, 2], users=[3, 3])], {})
    with pytest.raises(ConfigError, match="level=2"):
        frontier([world], {}, level=2)
