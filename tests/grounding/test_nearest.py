import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from frugalrec.errors import ConfigError, DataError, MissingExtraError
from frugalrec.grounding.nearest import NearestGrounder, first_line
from frugalrec.grounding.neighbours import ApproximateIndex, all_distances, prepared
from frugalrec.grounding.reweighting import reweight, score_weights
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.grounding_contract import GrounderContract
from frugalrec.testing.toys import cycle_dataset

PROMPT = NextTitlePrompt(noun="film", window=3)
DATA = cycle_dataset(n_users=9, n_items=40, length=5)
TITLES = [f"Film  {item}" for item in range(DATA.n_items)]
TITLES[7] = TITLES[3]
TITLES[30] = "Film 12"  # after cleaning the same as item 12's
USERS = np.array([4, 0, 8, 2, 5])


class Hashed:
    """Vectors that depend on every character, around a large mean, as those of language models."""

    fingerprint = "hashed"

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        self.asked.append(list(texts))
        draws = [np.random.default_rng(hashlib.sha256(text.encode()).digest()[0]) for text in texts]
        return np.array([300 + 5 * draw.normal(size=8) for draw in draws], dtype=np.float32).reshape(-1, 8)


def reply(prompt):
    return f" {hashlib.sha256(prompt.encode()).hexdigest()[:5]}\nNext film: and so on"


def grounder(**options):
    return NearestGrounder(FakeLLM(reply=reply), PROMPT, Hashed(), **{"titles": TITLES, **options})


def plain_distances(users, histories=DATA, metric="euclidean"):
    questions = [PROMPT.question([TITLES[i] for i in histories.history(int(u))]) for u in users]
    queries = Hashed().embed([reply(q).split()[0] for q in questions]).astype(np.float64)
    catalogue = Hashed().embed([" ".join(title.split()) for title in TITLES]).astype(np.float64)
    if metric == "cosine":
        queries, catalogue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, catalogue))
    return cdist(queries, catalogue)


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_lists_are_those_of_all_distances(metric, index):
    if index == "faiss":
        pytest.importorskip("faiss", reason="needs frugalrec[ann]")
    ranking, usage = grounder(metric=metric, index=index).ground(DATA, USERS, k=12, seen="include")
    expected = plain_distances(USERS, metric="euclidean" if metric == "l2" else "cosine")
    order = np.argsort(np.round(expected, 5), axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(ranking.items, order)
    atol = 1e-3 if metric == "l2" else 1e-4
    np.testing.assert_allclose(-ranking.scores, np.take_along_axis(expected, order, 1), atol=atol)
    assert usage.llm_calls == USERS.size and usage.tokens_out > 0


def test_namesakes_are_exactly_as_far_away_and_embedded_once():
    ground = grounder()
    written, _ = ground.write(DATA, USERS)
    far = ground.distances(DATA, written)
    np.testing.assert_allclose(far, plain_distances(USERS), atol=1e-3)
    np.testing.assert_array_equal(far[:, 3], far[:, 7])
    np.testing.assert_array_equal(far[:, 12], far[:, 30])
    assert len(ground.embedder.asked[0]) == 38  # the catalogue, once
    ground.distances(DATA, written)
    assert len(ground.embedder.asked) == 3


@pytest.mark.parametrize("index", ["exact", "faiss"])
@pytest.mark.parametrize("origin", ["nearest", "zero"])
@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_weights_move_lists_as_the_formula_says(index, origin, seen):
    if index == "faiss":
        pytest.importorskip("faiss", reason="needs frugalrec[ann]")
    own = score_weights(np.random.default_rng(0).random((DATA.n_users, DATA.n_items)))
    options = {"weights": lambda users: own[users], "gamma": 3.0, "origin": origin, "index": index}
    ranking, _ = grounder(**options).ground(DATA, USERS, k=10, seen=seen)
    far = grounder().distances(DATA, grounder().write(DATA, USERS)[0]).astype(np.float64)
    for row, user in enumerate(USERS):
        if seen == "exclude":
            far[row, DATA.history(int(user))] = np.inf
    expected = reweight(far, own[USERS], 3.0, origin=origin)
    np.testing.assert_array_equal(ranking.items, np.argsort(expected, axis=1, kind="stable")[:, :10])


def test_neither_batches_nor_the_order_of_users_or_items_matter():
    whole, _ = grounder().ground(DATA, USERS, k=8)
    told = []
    small, _ = grounder(users_per_batch=2).ground(DATA, USERS, k=8, progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]
    order = np.array([3, 1, 4, 0, 2])
    turned, _ = grounder().ground(DATA, USERS[order], k=8)
    for other in (small, turned.take(np.argsort(order))):
        np.testing.assert_array_equal(other.items, whole.items)
    codes = np.random.default_rng(0).permutation(DATA.n_items)
    back = np.argsort(codes)
    renamed = replace(DATA, items=codes[DATA.items].astype(np.int32))
    moved, _ = grounder(titles=[TITLES[i] for i in back]).ground(renamed, USERS, k=8)
    clean = [" ".join(title.split()) for title in TITLES]
    for one, other in zip(whole.items, moved.items, strict=True):
        assert [clean[i] for i in one] == [clean[back[i]] for i in other]


class TestNearestContract(GrounderContract):
    def dataset(self):
        return DATA

    def make(self):
        return grounder()


def test_seen_items_are_left_out_and_short_lists_padded():
    ranking, _ = grounder().ground(DATA, USERS, k=50)
    for user, row in zip(USERS, ranking.items, strict=True):
        assert set(row[row >= 0]) == set(range(40)) - set(DATA.history(int(user)).tolist())
        assert (row[len(set(row)) - 1 :] == -1).all()


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_an_index_that_may_miss_some_still_fills_the_list(index):
    if index == "faiss":
        pytest.importorskip("faiss", reason="needs frugalrec[ann]")
    ranking, _ = grounder(index=index).ground(DATA, USERS, k=35)
    assert (ranking.items >= 0).all()


def test_distances_do_not_drown_in_a_large_mean():
    rng = np.random.default_rng(0)
    vectors = (1e4 + rng.normal(size=(60, 16))).astype(np.float32)
    expected = cdist(vectors[:9].astype(np.float64), vectors.astype(np.float64))
    np.testing.assert_allclose(all_distances(vectors[:9], vectors), expected, atol=5e-3)


def test_the_approximate_index_finds_the_nearest():
    pytest.importorskip("faiss", reason="needs frugalrec[ann]")
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    far, found = ApproximateIndex(vectors).search(vectors[:20], 10)
    expected = np.argsort(all_distances(vectors[:20], vectors), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]) > 9.5
    np.testing.assert_allclose(far[:, 0], 0, atol=1e-3)
    np.testing.assert_array_equal(found[:, 0], np.arange(20))


def test_a_missing_extra_explains_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frugalrec\[ann\]'"):
        grounder(index="faiss").ground(DATA, USERS)


def test_only_the_first_line_counts():
    assert first_line("\n  Quake II \nNext game: Doom") == "Quake II"
    assert first_line(" \n") == "untitled"


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="metric must be one of l2, cosine, not 'dot'"):
        grounder(metric="dot").ground(DATA, USERS)
    with pytest.raises(ConfigError, match="index must be exact or faiss, not 'annoy'"):
        grounder(index="annoy").ground(DATA, USERS)
    with pytest.raises(ConfigError, match="gamma is 2.0, but there are no weights"):
        grounder(gamma=2.0).ground(DATA, USERS)
    with pytest.raises(ConfigError, match="gamma must be a number of at least 0, not -1"):
        grounder(gamma=-1.0).ground(DATA, USERS)
    for shape in ((3,), (1, 40), (USERS.size, 40)):  # rows of an array would meet other users
        with pytest.raises(DataError, match=r"weights must be \(40,\), not .* give a function of user codes"):
            grounder(gamma=1.0, weights=np.zeros(shape)).ground(DATA, USERS)
    with pytest.raises(
        DataError, match=r"must be \(2, 40\), not \(5, 40\); its function was asked for 2 users"
    ):
        own = lambda users: np.zeros((5, 40))  # noqa: E731
        grounder(gamma=1.0, weights=own, users_per_batch=2).ground(DATA, USERS)
    with pytest.raises(DataError, match="between 0 and 1"):
        grounder(gamma=1.0, weights=np.full(40, 2.0)).ground(DATA, USERS)
    with pytest.raises(DataError, match="vector 1 holds numbers that are not finite"):
        prepared(np.array([[1.0], [np.nan]], dtype=np.float32), "l2")
