import math

import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.recommenders.sequential import SASRec
from frugalrec.recommenders.spectral import leading_eigenpairs, neighbour_information, spectral_embeddings
from frugalrec.testing.toys import cycle_dataset


def tiny() -> Dataset:
    """Return two users: a b c, and a b."""
    frame = pl.DataFrame({"user": ["1", "1", "1", "2", "2"], "item": ["a", "b", "c", "a", "b"]})
    return Dataset.from_frames(frame, name="tiny")


def test_information_by_hand() -> None:
    data = tiny()
    code = {name: index for index, name in enumerate(data.item_ids.tolist())}
    found = neighbour_information(data, reach=2, smoothing=1.0).toarray()
    # Pairs: ab 1 + 1, bc 1, ac 1/2, both ways round: total 7; frequency a 2.5, b 3, c 1.5.
    counts = {("a", "b"): 2.0, ("b", "c"): 1.0, ("a", "c"): 0.5}
    frequency = {"a": 2.5, "b": 3.0, "c": 1.5}
    expected = np.zeros((3, 3))
    for (left, right), count in counts.items():
        value = max(math.log(count * 7 / (frequency[left] * frequency[right])), 0)
        expected[code[left], code[right]] = expected[code[right], code[left]] = value
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert expected[code["a"], code["c"]] == 0  # 0.5 * 7 / 3.75 < 1


def test_information_equals_a_loop() -> None:
    data = cycle_dataset(noise=0.4)
    counts = np.zeros((data.n_items, data.n_items))
    for user in range(data.n_users):
        history = data.history(user)
        for i in range(history.size):
            for j in range(i + 1, min(i + 4, history.size)):
                counts[history[i], history[j]] += 1 / (j - i)
                counts[history[j], history[i]] += 1 / (j - i)
    frequency, total = counts.sum(axis=1), counts.sum()
    smooth = frequency**0.75 * total / (frequency**0.75).sum()
    expected = np.sqrt(np.outer(frequency * smooth, frequency * smooth))
    with np.errstate(divide="ignore"):
        wanted = np.maximum(np.log(counts * total / expected), 0)
    np.testing.assert_allclose(neighbour_information(data, reach=3).toarray(), wanted, atol=1e-12)


def test_eigenpairs_equal_the_dense_solution() -> None:
    matrix = neighbour_information(cycle_dataset(noise=0.4), reach=5)
    values, vectors = leading_eigenpairs(matrix, 4, np.random.default_rng(0), iterations=60)
    expected = np.linalg.eigvalsh(matrix.toarray())[::-1][:4]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-4)


def test_neighbours_on_the_ring_are_similar() -> None:
    data = cycle_dataset(noise=0.0)
    embeddings = spectral_embeddings(data, 8, np.random.default_rng(0), reach=2)
    code = {name: index for index, name in enumerate(data.item_ids.tolist())}
    for place in range(data.n_items):
        own = embeddings[code[f"i{place}"]]
        near = own @ embeddings[code[f"i{(place + 1) % data.n_items}"]]
        far = own @ embeddings[code[f"i{(place + 10) % data.n_items}"]]
        assert near > far


@pytest.mark.parametrize("size", [4, 20, 64])
def test_any_width_works_and_rows_have_the_asked_length(size) -> None:
    data = cycle_dataset()
    embeddings = spectral_embeddings(data, size, np.random.default_rng(0), norm=2.0)
    assert embeddings.shape == (data.n_items, size)
    assert embeddings.dtype == np.float32
    # The noise moves a length by some 0.02 along it; across, by 0.02^2 (size - 1) / (2 * 2) at most.
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 2.0, atol=0.1)


def test_data_without_pairs_give_noise() -> None:
    frame = pl.DataFrame({"user": ["1", "2"], "item": ["a", "b"]})
    embeddings = spectral_embeddings(Dataset.from_frames(frame, name="lone"), 4, np.random.default_rng(0))
    assert np.isfinite(embeddings).all()
    assert 0 < np.abs(embeddings).max() < 0.2


def test_a_spectral_start_helps_at_once() -> None:
    data = cycle_dataset(noise=0.1)
    losses = [
        SASRec(embedding_size=16, epochs=1, batch_size=16, initial=initial, threads=1)
        .fit(data)
        .history_[0]["loss"]
        for initial in ("spectral", "random")
    ]
    assert losses[0] < losses[1] - 0.1
