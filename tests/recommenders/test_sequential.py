from dataclasses import replace

import numpy as np
import pytest
import torch

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.sequential import DROS, Caser, GRU4Rec, SASRec
from frugalrec.recommenders.training import validation_ndcg
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset

TINY = {"embedding_size": 8, "epochs": 2, "batch_size": 32, "learning_rate": 0.01, "threads": 1}
MODELS = [SASRec, GRU4Rec, Caser, DROS]


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small tensors the cost of waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestSASRec(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return SASRec(**TINY)


class TestGRU4Rec(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return GRU4Rec(**TINY)


class TestCaser(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return Caser(**TINY)


class TestDROS(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return DROS(**TINY)


def next_on_the_ring(data):
    """Return, for each user, the code of the item after the user's last one on the ring."""
    code = {name: index for index, name in enumerate(data.item_ids.tolist())}
    last = [data.item_ids[data.history(user)[-1]] for user in range(data.n_users)]
    return [code[f"i{(int(name[1:]) + 1) % data.n_items}"] for name in last]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "loss"),
    [(SASRec, "softmax"), (SASRec, "sampled-softmax"), (SASRec, "bce"), (DROS, "softmax"), (DROS, "bce")]
    + [(GRU4Rec, "softmax"), (Caser, "softmax")],
)
def test_every_model_and_loss_learns_the_ring(kind, loss) -> None:
    data = cycle_dataset(noise=0.0, length=8)
    model = kind(
        embedding_size=16,
        dropout=0.1,
        epochs=30,
        batch_size=16,
        learning_rate=0.01,
        loss=loss,
        n_negatives=64,
        threads=1,
    ).fit(data)
    best = model.recommend(np.arange(data.n_users), 1).items[:, 0]
    hits = np.mean(best == next_on_the_ring(data))
    # Chance is 1 in 12 unseen items; without noise a sequence model should nearly always be right.
    assert hits > 0.9


@pytest.mark.slow
def test_the_last_training_transition_is_learned() -> None:
    # Each user has two items, so the only transition is the last one.
    data = cycle_dataset(n_users=100, noise=0.0)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    pairs = data.where(place < 2)
    model = SASRec(embedding_size=16, dropout=0.0, epochs=60, batch_size=16, learning_rate=0.01, threads=1)
    model.fit(pairs)
    first = pairs.where(np.isin(np.arange(pairs.n), pairs.indptr[:-1]))
    best = model.recommend(np.arange(100), 1, seen="include", histories=first).items[:, 0]
    assert np.mean(best == pairs.items[1::2]) > 0.9


def test_only_the_last_items_count() -> None:
    data = cycle_dataset()
    model = SASRec(**TINY, max_length=3).fit(data)
    place = np.repeat(data.indptr[1:], data.lengths) - np.arange(data.n)
    recent = data.where(place <= 3)
    np.testing.assert_array_equal(model.score(np.arange(9), recent), model.score(np.arange(9)))


def test_a_user_without_history_gets_the_popular_items() -> None:
    data = cycle_dataset(noise=0.5)
    train = data.where(data.rows != 3)
    model = SASRec(**TINY).fit(train)
    expected = train.item_counts / train.item_counts.max()
    np.testing.assert_allclose(model.score(np.array([3]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_an_item_never_seen_in_training_ranks_below_all_others(kind) -> None:
    data = cycle_dataset()
    unseen = 4
    train = data.where(data.items != unseen)
    model = kind(**TINY).fit(train)
    scores = model.score(np.arange(data.n_users), data)
    assert (scores[:, [unseen]] < np.delete(scores, unseen, axis=1)).all()
    assert np.isfinite(scores).all()


def test_history_records_every_epoch_and_the_best_is_kept() -> None:
    parts = split(cycle_dataset(), "leave-last-out")
    model = SASRec(**{**TINY, "epochs": 5}, eval_every=2).fit(parts.train, parts.valid)
    assert [one["epoch"] for one in model.history_] == [1, 2, 3, 4, 5]
    assert ["valid_ndcg" in one for one in model.history_] == [False, True, False, True, False]
    assert all(one["seconds"] > 0 and one["loss"] > 0 for one in model.history_)
    best = max((one for one in model.history_ if "valid_ndcg" in one), key=lambda one: one["valid_ndcg"])
    assert model.best_epoch_ == best["epoch"]
    again = validation_ndcg(model.network_, parts.train, parts.valid, max_length=50)
    assert again == best["valid_ndcg"]


def test_training_data_without_a_transition_are_refused() -> None:
    data = cycle_dataset()
    single = data.where(np.isin(np.arange(data.n), data.indptr[:-1]))
    with pytest.raises(DataError, match="no user has two interactions"):
        SASRec(**TINY).fit(single)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SASRec, DROS])
def test_a_killed_fit_continues_to_the_same_scores(tmp_path, kind, monkeypatch) -> None:
    parts = split(cycle_dataset(), "leave-last-out")
    options = {**TINY, "epochs": 4}
    whole = kind(**options).fit(parts.train, parts.valid)
    calls = []

    def killed(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return validation_ndcg(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("frugalrec.recommenders.sequential.validation_ndcg", killed)
        with pytest.raises(KeyboardInterrupt):
            kind(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    resumed = kind(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    np.testing.assert_array_equal(resumed.score(np.arange(30)), whole.score(np.arange(30)))
    assert [one["loss"] for one in resumed.history_] == [one["loss"] for one in whole.history_]
    with pytest.raises(StorageError, match="other data or options"):
        kind(**{**options, "dropout": 0.1}, checkpoint=tmp_path).fit(parts.train, parts.valid)
    with pytest.raises(StorageError, match="other data or options"):
        kind(**options, checkpoint=tmp_path).fit(parts.train)


def test_fitting_leaves_the_callers_random_state_and_threads_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SASRec(**{**TINY, "threads": 2}).fit(cycle_dataset())
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1


def test_another_seed_gives_another_model() -> None:
    data = cycle_dataset()
    first, other = (SASRec(**TINY, seed=seed).fit(data).score(np.arange(5)) for seed in (0, 1))
    assert not np.allclose(first, other)


@pytest.mark.slow
def test_item_codes_do_not_matter() -> None:
    # The same events under another permutation of codes: the ring is learned just as well.
    hits = []
    for seed in (0, 1):
        data = cycle_dataset(noise=0.0)
        order = np.random.default_rng(seed).permutation(data.n_items)
        inverse = np.argsort(order)
        moved = replace(
            data,
            items=inverse[data.items].astype(np.int32),
            item_ids=data.item_ids[order],
            item_text=data.item_text[order.tolist()],
        )
        model = SASRec(
            embedding_size=16, dropout=0.1, epochs=25, batch_size=16, learning_rate=0.01, threads=1
        ).fit(moved)
        best = model.recommend(np.arange(data.n_users), 1, seen="include").items[:, 0]
        hits.append(np.mean(best == next_on_the_ring(moved)))
    assert min(hits) > 0.9


@pytest.mark.slow
def test_the_robust_part_lowers_the_scores_of_popular_wrong_items() -> None:
    data = cycle_dataset(n_users=80, noise=0.5)
    options = {**TINY, "epochs": 15, "dropout": 0.0}
    plain = SASRec(**options).fit(data)
    none = DROS(**options, robustness=0.0).fit(data)
    strong = DROS(**options, robustness=10.0, temperature=0.1).fit(data)
    users = np.arange(80)
    np.testing.assert_allclose(none.score(users), plain.score(users), rtol=1e-4, atol=1e-4)
    weights = data.item_counts / data.n

    def pull(model: Recommender) -> float:
        return float((1 / (1 + np.exp(-model.score(users))) ** 2 @ weights).mean())

    assert pull(strong) < pull(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'; choose softmax, sampled-softmax, bce"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"heads": 3}, "heads must divide embedding_size; 3 does not divide 8"),
        ({"epochs": 0}, "epochs must be above 0, not 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, not -1.0"),
        ({"max_length": 0}, "max_length must be above 0, not 0"),
    ],
)
def test_bad_options_name_the_value(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SASRec(**{**TINY, **options}).fit(cycle_dataset())


def test_bad_options_of_the_others_name_the_value() -> None:
    with pytest.raises(
        ConfigError, match=r"window, horizontal and vertical must be at least 1, not 0, 16 and 4"
    ):
        Caser(**TINY, window=0).fit(cycle_dataset())
    with pytest.raises(ConfigError, match=r"temperature must be above 0 .*not 0.0 and 0.1"):
        DROS(**TINY, temperature=0.0).fit(cycle_dataset())


def test_progress_is_told_epoch_by_epoch_and_decides_nothing(tmp_path):
    told: list[tuple[int, int]] = []
    options = {"epochs": 3, "embedding_size": 8, "layers": 1, "heads": 1}
    data = cycle_dataset(n_users=20)
    heard = SASRec(**options, progress=lambda done, total: told.append((done, total)), checkpoint=tmp_path)
    silent = SASRec(**options).fit(data)
    assert told == []
    assert np.array_equal(heard.fit(data).score(np.arange(5)), silent.score(np.arange(5)))
    assert told == [(1, 3), (2, 3), (3, 3)]
