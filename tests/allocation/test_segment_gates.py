import numpy as np
import pytest

from frugalrec.allocation.gates import fit_gates, fuse_by_user
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.fusion import fuse
from frugalrec.types import Ranking

WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def metric_values(gains, n, noise=0.1, seed=0):
    """Weight -> values of n users with these mean gains over the cheap list."""
    rng = np.random.default_rng(seed)
    base = rng.random(n)
    return {
        w: base + g + (noise * rng.standard_normal(n) if w else 0)
        for w, g in zip(WEIGHTS, gains, strict=True)
    }


def test_each_segment_gets_its_own_weight_and_harm_shuts_the_gate():
    good, bad = metric_values((0, 0.02, 0.1, 0.05), 200), metric_values((0, -0.05, -0.1, -0.2), 200, seed=1)
    segments = np.repeat([0, 1], 200)
    gates = fit_gates(segments, {w: np.concatenate([good[w], bad[w]]) for w in WEIGHTS})
    assert gates.gates[0].weight == 0.5 and gates.gates[0].open
    assert gates.gates[0].gain == pytest.approx(0.1, abs=0.03)
    assert gates.gates[1].weight == 0 and not gates.gates[1].open
    np.testing.assert_array_equal(gates.weights(np.array([1, 0, 7])), [0, 0.5, 0])
    assert "used in 1 of 2 segments" in str(gates)


@pytest.mark.slow
def test_picking_the_best_of_many_weights_is_not_taken_for_a_gain():
    """With no gain at all, gates open about as rarely as their level allows, whatever the grid."""
    opened = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        base = rng.random(60)
        values = {
            w: base + (0.2 * rng.standard_normal(60) if w else 0) for w in np.linspace(0, 1, 9).tolist()
        }
        opened += fit_gates(np.zeros(60), values, seed=seed).gates[0].open
    # 5 % of 200 is 10, standard deviation 3.1
    assert opened <= 20


def test_measured_gain_by_hand_with_two_weights():
    gain = np.tile([0.1, 0.3], 10)
    gates = fit_gates(np.zeros(20), {0.0: np.zeros(20), 1.0: gain})
    gate = gates.gates[0]
    assert gate.gain == pytest.approx(0.2)
    # One weight and symmetric deviations: close to Student's t, 1.729 at .95 with 19 degrees of freedom.
    assert gate.lower == pytest.approx(0.2 - 1.729 * gain.std(ddof=1) / np.sqrt(20), abs=0.008)


def test_few_users_keep_the_gate_shut():
    gates = fit_gates(np.zeros(9), {0.0: np.zeros(9), 1.0: np.ones(9)})
    assert not gates.gates[0].open and gates.gates[0].best_weight == 1.0 and gates.gates[0].lower == -np.inf
    assert "the LLM is used for nobody" in str(gates)


def test_undefined_users_are_left_out_and_order_does_not_open_gates():
    values = metric_values((0, 0.02, 0.1, 0.05), 100)
    broken = {w: np.append(v, np.nan) for w, v in values.items()}
    whole = fit_gates(np.zeros(100), values)
    assert fit_gates(np.zeros(101), broken).gates == whole.gates
    order = np.random.default_rng(0).permutation(100)
    again = fit_gates(np.zeros(100), {w: v[order] for w, v in values.items()}).gates[0]
    assert again.lower == pytest.approx(whole.gates[0].lower)


def test_fusing_by_user_equals_fusing_one_by_one():
    rng = np.random.default_rng(0)
    n, m = 12, 6
    ranking = Ranking(
        users=np.arange(n, dtype=np.int32),
        items=np.stack([rng.permutation(20)[:8] for _ in range(n)]).astype(np.int32),
        scores=np.sort(rng.random((n, 8)).astype(np.float32), axis=1)[:, ::-1],
    )
    odds = rng.standard_normal((n, m)).astype(np.float32)
    weights = rng.choice(WEIGHTS, n)
    found = fuse_by_user(ranking, odds, weights)
    for row in range(n):
        one = fuse(ranking.take(np.array([row])), odds[[row]], float(weights[row]))
        np.testing.assert_array_equal(found.items[row], one.items[0])
    with pytest.raises(DataError, match="one weight a list"):
        fuse_by_user(ranking, odds, weights[:3])


def test_bad_input():
    with pytest.raises(ConfigError, match="weight 0"):
        fit_gates(np.zeros(3), {1.0: np.ones(3)})
    with pytest.raises(DataError, match="one value a user"):
        fit_gates(np.zeros(3), {0.0: np.ones(2)})
    with pytest.raises(ConfigError, match="level=1"):
        fit_gates(np.zeros(3), {0.0: np.ones(3)}, level=1)
