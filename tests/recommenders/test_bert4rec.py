import numpy as np
import pytest
import torch

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, StorageError
from frugalrec.recommenders import losses
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.batching import training_windows
from frugalrec.recommenders.bert4rec import BERT4Rec, BERT4RecNetwork, cloze, cloze_step, sequences
from frugalrec.recommenders.training import validation_ndcg
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset

TINY = {"embedding_size": 8, "epochs": 2, "batch_size": 32, "learning_rate": 0.01, "threads": 1}


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small tensors the cost of waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestBERT4Rec(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return BERT4Rec(**TINY)


def network(dropout: float = 0.0) -> BERT4RecNetwork:
    torch.manual_seed(0)
    built = BERT4RecNetwork(20, embedding_size=8, layers=2, heads=2, dropout=dropout, max_length=12)
    built.initialise(scale=0.5)
    return built.eval()


def test_a_sequence_is_a_window_and_its_last_target() -> None:
    data = cycle_dataset(n_users=9, noise=0.5)
    keep = np.random.default_rng(0).integers(1, 13, size=data.n_users)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    data = data.where(place < np.repeat(keep, data.lengths))
    windows = training_windows(data, 5)
    indptr, items = sequences(windows)
    assert indptr.size == len(windows) + 1
    for row in range(len(windows)):
        window = slice(windows.indptr[row], windows.indptr[row + 1])
        expected = [windows.inputs[window][0], *windows.targets[window]]
        assert items[indptr[row] : indptr[row + 1]].tolist() == expected


def test_masks_have_the_asked_for_shares_and_every_row_has_one() -> None:
    lengths = np.tile([2, 5, 40], 5_000)
    first = np.cumsum(lengths) - lengths
    masked = cloze(lengths, 0.2, 0.3, np.random.default_rng(0))
    counts = np.add.reduceat(masked, first, dtype=np.int64)
    assert counts.min() == 1
    long = np.flatnonzero(lengths == 40)
    last = masked[first + lengths - 1]
    # A row of 40 that is drawn to mask its last item only masks one item; others do so with a chance of
    # 0.8^40 + 40 * 0.2 * 0.8^39 = 0.0015. Four standard deviations of 5,000 draws of 0.3: 0.026.
    alone = counts[long] == 1
    assert alone.mean() == pytest.approx(0.3015, abs=0.026)
    assert last[long][alone].mean() > 0.99
    assert counts[long][~alone].mean() == pytest.approx(8, abs=0.2)
    assert last[long][~alone].mean() == pytest.approx(0.2, abs=0.03)
    only_last = cloze(lengths, 0.2, 1.0, np.random.default_rng(0))
    assert np.flatnonzero(only_last).tolist() == (first + lengths - 1).tolist()


def test_a_step_equals_one_sequence_at_a_time() -> None:
    model = network()
    keep = np.random.default_rng(0).integers(2, 13, size=40)
    data = cycle_dataset(n_users=40, noise=0.5)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    windows = training_windows(data.where(place < np.repeat(keep, data.lengths)), 12)
    seen = {}

    def loss(hidden, weight, targets, users, rng):
        seen.update(hidden=hidden, targets=targets, users=users)
        return losses.catalogue_loss(hidden, weight, targets)

    rows = np.random.default_rng(1).permutation(len(windows))[:17]
    step = cloze_step(model, windows, loss, mask_ratio=0.3, last_share=0.2)
    value, count = step(rows, np.random.default_rng(2))
    assert count == seen["targets"].shape[0] == seen["users"].size
    # Which positions were masked follows from the targets: rebuild each row with the mask there.
    indptr, items = sequences(windows)
    total = 0.0
    for row in rows:
        user = windows.users[row]
        mine = np.flatnonzero(seen["users"] == user)
        codes = torch.from_numpy(items[indptr[row] : indptr[row + 1]])
        wanted, found = seen["targets"][mine].tolist(), []
        best = None
        for choice in _subsets(codes.tolist(), wanted):
            embedded = model.items(codes).clone()
            embedded[choice] = model.mask
            hidden = model.encode(embedded[None])[0, choice]
            gap = float((hidden - seen["hidden"][mine]).detach().abs().max())
            if best is None or gap < best:
                best, found = gap, hidden
        assert best < 1e-5
        total += float(losses.softmax_loss(found, model.items.weight, torch.tensor(wanted)).sum().detach())
    assert float(value.detach()) == pytest.approx(total / count, rel=1e-5)


def _subsets(codes, wanted):
    """Return the increasing places at which `wanted` can stand in `codes`."""
    found = [[]]
    for target in wanted:
        found = [
            [*head, place]
            for head in found
            for place in range(head[-1] + 1 if head else 0, len(codes))
            if codes[place] == target
        ]
    return found


def test_a_masked_item_is_not_seen_and_both_sides_are() -> None:
    model = network()
    codes = torch.tensor([1, 2, 3, 4, 5])

    def state(changed=None):
        items = codes.clone()
        if changed is not None:
            items[changed] = 17
        embedded = model.items(items).clone()
        embedded[2] = model.mask
        return model.encode(embedded[None])[0, 2]

    assert torch.equal(state(2), state())
    for side in (0, 1, 3, 4):
        assert not torch.allclose(state(side), state(), atol=1e-4)


def next_on_the_ring(data):
    """Return, for each user, the code of the item after the user's last one on the ring."""
    code = {name: index for index, name in enumerate(data.item_ids.tolist())}
    last = [data.item_ids[data.history(user)[-1]] for user in range(data.n_users)]
    return [code[f"i{(int(name[1:]) + 1) % data.n_items}"] for name in last]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "share"), [("softmax", 0.7), ("sampled-softmax", 0.7), ("bce", 0.3)])
def test_every_loss_learns_the_ring(loss, share) -> None:
    data = cycle_dataset(n_users=240, noise=0.0, length=8)
    model = BERT4Rec(
        embedding_size=16,
        dropout=0.0,
        epochs=20,
        batch_size=16,
        learning_rate=0.01,
        last_share=0.2,
        loss=loss,
        n_negatives=64,
        threads=1,
    ).fit(data)
    best = model.recommend(np.arange(data.n_users), 1).items[:, 0]
    assert np.mean(best == next_on_the_ring(data)) > share  # chance is 1 in 12 unseen items


def test_scores_do_not_depend_on_who_else_is_scored() -> None:
    data = cycle_dataset(noise=0.5)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    keep = np.random.default_rng(0).integers(1, 13, size=data.n_users)
    ragged = data.where(place < np.repeat(keep, data.lengths))
    model = BERT4Rec(**TINY).fit(ragged)
    whole = model.score(np.arange(data.n_users))
    for user in range(data.n_users):
        np.testing.assert_allclose(model.score(np.array([user]))[0], whole[user], rtol=1e-5, atol=1e-5)


def test_an_item_never_seen_in_training_ranks_below_all_others() -> None:
    data = cycle_dataset()
    model = BERT4Rec(**TINY).fit(data.where(data.items != 4))
    scores = model.score(np.arange(data.n_users), data)
    assert (scores[:, [4]] < np.delete(scores, 4, axis=1)).all()


def test_a_killed_fit_continues_to_the_same_scores(tmp_path, monkeypatch) -> None:
    parts = split(cycle_dataset(), "leave-last-out")
    options = {**TINY, "epochs": 4}
    whole = BERT4Rec(**options).fit(parts.train, parts.valid)
    calls = []

    def killed(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return validation_ndcg(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("frugalrec.recommenders.sequential.validation_ndcg", killed)
        with pytest.raises(KeyboardInterrupt):
            BERT4Rec(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    resumed = BERT4Rec(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    np.testing.assert_array_equal(resumed.score(np.arange(30)), whole.score(np.arange(30)))
    assert [one["loss"] for one in resumed.history_] == [one["loss"] for one in whole.history_]
    with pytest.raises(StorageError, match="other data or options"):
        BERT4Rec(**options, mask_ratio=0.4, checkpoint=tmp_path).fit(parts.train, parts.valid)


def test_the_seed_decides_the_model() -> None:
    data = cycle_dataset()
    first, again, other = (BERT4Rec(**TINY, seed=seed).fit(data).score(np.arange(5)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio must lie between 0 and 1, not 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, not 1.0"),
        ({"last_share": 1.5}, r"last_share must lie in 0..1, not 1.5"),
        ({"heads": 3}, "bert4rec: heads must divide embedding_size; 3 does not divide 8"),
    ],
)
def test_bad_options_name_the_value(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        BERT4Rec(**{**TINY, **options}).fit(cycle_dataset())
