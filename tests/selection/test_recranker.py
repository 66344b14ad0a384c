import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create as recommender
from frugalrec.selection import create
from frugalrec.selection.clusters import kmeans
from frugalrec.selection.recranker import draw_in_turns
from frugalrec.testing.toys import cycle_dataset

WHOLE = cycle_dataset(n_users=50, n_items=12, length=9, noise=0.3)
# Users keep 2 to 9 interactions.
DATA = WHOLE.where(np.arange(WHOLE.n) - WHOLE.indptr[WHOLE.rows] < 2 + WHOLE.rows % 8)
ROWS = examples(DATA, window=6, min_history=1, per_user="all")


@pytest.fixture(scope="module")
def surrogate():
    return recommender("sasrec", epochs=2, embedding_size=8, max_length=6).fit(DATA)


def states_after(model, user):
    """A user's state by a pass of its own."""
    import torch

    history = torch.from_numpy(DATA.history(user)[-6:].astype(np.int64))
    with torch.no_grad():
        return model.network_.next_states(history[None], torch.tensor([len(history)]))[0].numpy()


def test_the_score_is_importance_times_coverage(surrogate):
    scorer = create("recranker", surrogates=[surrogate], clusters=4)
    scores = scorer.score(ROWS, DATA)
    users = np.unique(ROWS.users)
    for user in users:
        own = np.unique(scorer.labels_[ROWS.users == user])
        assert own.size == 1
        mates = [u for u in users if (scorer.labels_[ROWS.users == u] == own[0]).all()]
        expected = np.log(len(DATA.history(int(user)))) * (len(users) / 4) / len(mates)
        np.testing.assert_allclose(scores[ROWS.users == user], expected, rtol=1e-5)


def test_clusters_are_tight_in_the_surrogates_states(surrogate):
    scorer = create("recranker", surrogates=[surrogate], clusters=4)
    scorer.score(ROWS, DATA)
    users, first = np.unique(ROWS.users, return_index=True)
    states = np.array([states_after(surrogate, int(user)) for user in users], dtype=np.float64)
    labels = scorer.labels_[first]
    means = [states[labels == group].mean(axis=0) for group in range(4)]
    spread = sum(((state - means[group]) ** 2).sum() for state, group in zip(states, labels, strict=True))
    best = min((kmeans(states, 4, np.random.default_rng(s)).distances ** 2).sum() for s in range(20))
    assert spread < 1.3 * best
    chance = ((states - states.mean(axis=0)) ** 2).sum()
    assert spread < 0.7 * chance


def test_the_order_of_rows_changes_no_row_of_users_apart():
    # One cluster: the score is the logarithm alone, whatever the order.
    order = np.random.default_rng(0).permutation(len(ROWS))
    options = {"options": {"epochs": 1, "embedding_size": 8}, "clusters": 1}
    scores = create("recranker", **options).score(ROWS, DATA)
    assert np.array_equal(create("recranker", **options).score(ROWS.take(order), DATA), scores[order])
    np.testing.assert_allclose(scores, np.log(DATA.lengths[ROWS.users]), rtol=1e-6)


def test_nobody_is_drawn_twice_before_all_once_and_clusters_take_turns(surrogate):
    scorer = create("recranker", surrogates=[surrogate], clusters=5)
    scores = scorer.score(ROWS, DATA)
    users = np.unique(ROWS.users)
    for size in (5, 23, users.size):
        kept = scorer.choose(scores, size, seed=size).kept
        assert kept.size == size == np.unique(ROWS.users[kept]).size
        if size == 5:
            assert np.unique(scorer.labels_[kept]).size == 5
    kept = scorer.choose(scores, users.size + 7, seed=1).kept
    assert kept.size == users.size + 7
    assert np.unique(ROWS.users[kept]).size == users.size
    assert not np.array_equal(kept, scorer.choose(scores, users.size + 7, seed=2).kept)
    assert np.array_equal(kept, scorer.choose(scores, users.size + 7, seed=1).kept)


def test_all_rows_of_all_clusters_give_the_parts_of_a_naive_loop():
    rng = np.random.default_rng(3)
    groups = rng.choice(4, 60, p=[0.6, 0.25, 0.1, 0.05])
    order = draw_in_turns(np.ones(60, np.float32), np.arange(60), groups, 60, np.random.default_rng(0))
    left = [int((groups == group).sum()) for group in range(4)]
    start = 0
    while sum(left):  # each turn: one row of every cluster that still has some, in any order
        turn = [group for group in range(4) if left[group]]
        assert sorted(groups[order[start : start + len(turn)]].tolist()) == turn
        start += len(turn)
        left = [max(size - 1, 0) for size in left]


@pytest.mark.slow
def test_the_chance_to_be_drawn_first_is_proportional_to_the_weight():
    weights = np.array([1.0, 2.0, 5.0, 0.0, np.nan], dtype=np.float32)
    rng = np.random.default_rng(0)
    draws = [draw_in_turns(weights, np.arange(5), np.zeros(5, np.int64), 5, rng) for _ in range(4000)]
    first = np.bincount([draw[0] for draw in draws], minlength=5) / 4000
    np.testing.assert_allclose(first, [1 / 8, 2 / 8, 5 / 8, 0, 0], atol=0.02)
    # Sequential draws without replacement: the second, given that the third row was first.
    second = np.bincount([draw[1] for draw in draws if draw[0] == 2], minlength=5)
    np.testing.assert_allclose(second / second.sum(), [1 / 3, 2 / 3, 0, 0, 0], atol=0.03)
    assert all(draw[3:].tolist() == [3, 4] for draw in draws)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 20), st.data())
def test_repetitions_wait_and_undefined_rows_go_last(n, seed, data):
    rng = np.random.default_rng(seed)
    users, groups_of = rng.integers(0, 8, n), rng.integers(0, 3, 8)
    weights = rng.random(8).astype(np.float32)
    weights[0] = np.nan
    size = data.draw(st.integers(1, n))
    order = draw_in_turns(weights[users], users, groups_of[users], size, rng)
    assert order.size == size == np.unique(order).size
    seen: dict[int, int] = {}
    rounds = []
    for row in order:
        rounds.append((users[row] == 0, seen.get(int(users[row]), 0)))
        seen[int(users[row])] = rounds[-1][1] + 1
    assert rounds == sorted(rounds)


def test_several_surrogates_stand_side_by_side(surrogate):
    other = recommender("gru4rec", epochs=1, embedding_size=4, max_length=6).fit(DATA)
    scorer = create("recranker", surrogates=[surrogate, other], clusters=3)
    assert not np.isnan(scorer.score(ROWS, DATA)).any()


def test_senseless_options_are_named(surrogate):
    users = np.unique(ROWS.users).size
    for clusters in (0, users + 1):
        with pytest.raises(
            ConfigError, match=f"clusters={clusters} must be .* in 1..{users}, the number of users"
        ):
            create("recranker", surrogates=[surrogate], clusters=clusters).score(ROWS, DATA)
    with pytest.raises(DataError, match="never trained"):
        create("recranker", surrogates=[recommender("sasrec")]).score(ROWS, DATA)
    with pytest.raises(DataError, match="call score on the rows first"):
        create("recranker").choose(np.zeros(4), 2)
