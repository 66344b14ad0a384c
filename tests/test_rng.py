import numpy as np

from frugalrec.rng import derive_seed, generator


def test_streams_are_named_and_independent_of_each_other():
    assert generator(1, "a").integers(1 << 30) == generator(1, "a").integers(1 << 30)
    seeds = {derive_seed(s, k, u) for s in range(3) for k in ("a", "b") for u in range(50)}
    assert len(seeds) == 300
    assert derive_seed(0, "1") != derive_seed(0, 1)
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")


def test_draws_of_neighbouring_streams_do_not_correlate():
    a, b = (np.stack([generator(0, k, u).normal(size=50) for u in range(200)]) for k in ("x", "y"))
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
