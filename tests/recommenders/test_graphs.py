import numpy as np
import pytest
import scipy.sparse as sp

from frugalrec.recommenders.graphs import (
    co_interactions,
    convolution,
    matrix,
    overlap,
    strongest,
    transitions,
)
from frugalrec.testing.toys import cycle_dataset

NOISY = cycle_dataset(n_users=30, noise=0.5, length=9)


def test_transitions_count_pairs_of_neighbours() -> None:
    expected = np.zeros((NOISY.n_items, NOISY.n_items))
    for user in range(NOISY.n_users):
        history = NOISY.history(user).tolist()
        for a, b in zip(history[:-1], history[1:], strict=True):
            expected[a, b] += a != b
    np.testing.assert_array_equal(transitions(NOISY).toarray(), expected)


def test_co_interactions_count_users() -> None:
    expected = np.zeros((NOISY.n_items, NOISY.n_items))
    for user in range(NOISY.n_users):
        known = set(NOISY.history(user).tolist())
        for a in known:
            for b in known - {a}:
                expected[a, b] += 1
    np.testing.assert_array_equal(co_interactions(NOISY).toarray(), expected)


@pytest.mark.parametrize("graph", [transitions, co_interactions])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("block_size", [7, 2048])
def test_a_convolution_is_the_mean_over_layers(graph, layers, block_size) -> None:
    counts = graph(NOISY)
    dense = counts.toarray()
    out, into = dense.sum(axis=1), dense.sum(axis=0)
    scaled = dense / np.sqrt(np.outer(out, into))
    embeddings = np.random.default_rng(0).normal(size=(NOISY.n_items, 5))
    total, current = embeddings.copy(), embeddings
    for _ in range(layers):
        current = scaled @ current
        total = total + current
    links, strengths = convolution(counts, layers, NOISY.n_items, block_size=block_size)
    found = np.stack([strengths[i] @ embeddings[links[i]] for i in range(NOISY.n_items)])
    np.testing.assert_allclose(found, total / (layers + 1), rtol=1e-10)


def test_only_the_strongest_neighbours_are_kept() -> None:
    weights = sp.csr_array(np.array([[0.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0], [4.0, 2.0, 0.0, 0.0]]))
    links, strengths = strongest(weights, 2)
    assert links.tolist() == [[1, 3], [0, 0], [0, 1]]  # a tie goes to the lower code
    assert strengths.tolist() == [[3.0, 3.0], [0.0, 0.0], [4.0, 2.0]]


def test_an_item_without_neighbours_keeps_its_own_embedding() -> None:
    data = cycle_dataset(noise=0.0)
    train = data.where(data.items != 4)
    links, strengths = convolution(transitions(train), 2, 3)
    assert strengths[4].tolist() == [pytest.approx(1 / 3), 0.0, 0.0]
    assert links[4, 0] == 4
    assert np.isfinite(strengths).all()


def test_matrices_and_their_overlap() -> None:
    one = matrix(np.array([[0, 1], [1, 2], [0, 0]]), np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(one.toarray(), [[3, 4, 0], [0, 1, 0], [0, 0, 0]])
    two = sp.csr_array(np.array([[4.0, 3.0, 0.0], [0.0, 5.0, 0.0], [1.0, 0.0, 0.0]]))
    # (3 * 4 + 4 * 3) / (5 * 5); parallel rows; an empty row.
    np.testing.assert_allclose(overlap(one, two), [0.96, 1.0, 0.0])
