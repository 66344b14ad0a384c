import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError, StorageError
from frugalrec.recommenders import losses
from frugalrec.recommenders.batching import (
    cells,
    last_states,
    length_groups,
    position_states,
    recent,
    training_windows,
)
from frugalrec.recommenders.networks import CaserNetwork, Dropout, GRU4RecNetwork, SASRecNetwork
from frugalrec.recommenders.training import AdamW, Schedule, next_item_step, train_network, validation_ndcg
from frugalrec.testing.toys import cycle_dataset


def ragged(seed: int = 0) -> Dataset:
    """Return the ring with between 1 and 12 items a user."""
    data = cycle_dataset(n_users=40, seed=seed)
    keep = np.random.default_rng(seed).integers(1, 13, size=data.n_users)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    return data.where(place < np.repeat(keep, data.lengths))


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small tensors the cost of waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(kind: str = "sasrec", n_items: int = 20, dropout: float = 0.0):
    torch.manual_seed(0)
    if kind == "sasrec":
        built = SASRecNetwork(n_items, embedding_size=8, layers=2, heads=2, dropout=dropout, max_length=12)
    elif kind == "gru4rec":
        built = GRU4RecNetwork(n_items, embedding_size=8, layers=2, dropout=dropout)
    else:
        built = CaserNetwork(n_items, embedding_size=8, window=4, horizontal=3, vertical=2, dropout=dropout)
    built.initialise(scale=0.5)
    return built.eval()


KINDS = ["sasrec", "gru4rec", "caser"]


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_windows_hold_every_transition_exactly_once(max_length) -> None:
    data = ragged()
    windows = training_windows(data, max_length)
    expected = [
        (user, int(a), int(b))
        for user in range(data.n_users)
        for a, b in zip(data.history(user)[:-1], data.history(user)[1:], strict=True)
    ]
    owners = np.repeat(windows.users, windows.lengths)
    found = list(zip(owners.tolist(), windows.inputs.tolist(), windows.targets.tolist(), strict=True))
    assert found == expected
    assert windows.lengths.max() <= max_length
    # Cut from the end: the newest window of a user with 11 transitions and length 3 has 3, the oldest 2.
    if max_length == 3:
        user = int(np.flatnonzero(data.lengths == 12)[0])
        assert windows.lengths[windows.users == user].tolist() == [2, 3, 3, 3]


def test_data_without_a_transition_are_refused() -> None:
    data = ragged()
    single = data.where(np.isin(np.arange(data.n), data.indptr[:-1]))
    with pytest.raises(DataError, match="no user has two interactions"):
        training_windows(single, 50)


def test_recent_takes_the_last_items() -> None:
    data = ragged()
    users = np.array([3, 0, 3], dtype=np.int32)
    indptr, items = recent(data, users, 4)
    for row, user in enumerate(users):
        assert items[indptr[row] : indptr[row + 1]].tolist() == data.history(int(user))[-4:].tolist()


def test_groups_partition_the_rows_and_bound_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 51, size=200)
    groups = length_groups(lengths)
    assert sorted(np.concatenate(groups).tolist()) == list(range(200))
    for group in groups:
        longest = lengths[group].max()
        assert longest <= 8 or lengths[group].min() * 2 > longest - 1


def test_padded_cells_take_packed_positions() -> None:
    take, real = cells(np.array([3, 1, 2]))  # packed positions 0 1 2 | 3 | 4 5
    assert take.tolist() == [[0, 1, 2], [3, 4, 5], [4, 5, 5]]
    assert real.tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_states_depend_on_the_past_only(kind) -> None:
    model = network(kind)
    items = torch.randint(20, (5, 12), generator=torch.Generator().manual_seed(1))
    states = model(items)
    changed = items.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 20
    later = model(changed)
    torch.testing.assert_close(later[:, :7], states[:, :7], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(later[:, 7], states[:, 7])
    for length in (1, 4, 12):  # a prefix alone has the same states
        torch.testing.assert_close(model(items[:, :length]), states[:, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_states_do_not_depend_on_batch_mates(kind) -> None:
    model, data = network(kind), ragged()
    indptr, items = recent(data, np.arange(data.n_users, dtype=np.int32), 12)
    together = last_states(model, indptr, items)
    for row in range(data.n_users):
        alone = model(torch.from_numpy(items[indptr[row] : indptr[row + 1]])[None])[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_training_positions_match_one_sequence_at_a_time(kind) -> None:
    model, windows = network(kind), training_windows(ragged(), 5)
    rows = np.random.default_rng(0).permutation(len(windows))[:17]
    states, targets, users = position_states(model, windows, rows)
    wanted = {}
    for row in rows:
        inputs = windows.inputs[windows.indptr[row] : windows.indptr[row + 1]]
        hidden = model(torch.from_numpy(inputs)[None])[0]
        for place, target in enumerate(windows.targets[windows.indptr[row] : windows.indptr[row + 1]]):
            wanted.setdefault((int(windows.users[row]), int(target)), []).append(hidden[place])
    assert states.shape[0] == windows.lengths[rows].sum()
    for state, target, user in zip(states, targets.tolist(), users.tolist(), strict=True):
        assert any(torch.allclose(state, one, atol=1e-5) for one in wanted[(user, target)])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch.func
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_agrees_with_the_gradient(kind) -> None:
    model = network(kind).double()
    items, targets = torch.tensor([[1, 5, 9, 3]]), torch.tensor([5, 9, 3, 7])
    values = {name: value.detach() for name, value in model.named_parameters()}
    torch.manual_seed(3)
    direction = {name: torch.randn_like(value) for name, value in values.items()}

    def loss(parameters):
        hidden = torch.func.functional_call(model, parameters, (items,))[0]
        return losses.softmax_loss(hidden, parameters["items.weight"], targets).sum()

    _, along = torch.func.jvp(loss, (values,), (direction,))
    gradient = torch.func.grad(loss)(values)
    expected = sum((gradient[name] * direction[name]).sum() for name in values)
    torch.testing.assert_close(along, expected)


def test_caser_equals_its_definition_window_by_window() -> None:
    model = network("caser")
    items = torch.tensor([[2, 7, 1, 8, 3, 0]])
    states = model(items)[0]
    embedded = model.items(items)[0]
    for place in range(6):
        window = torch.zeros(4, 8)
        past = embedded[max(0, place - 3) : place + 1]
        window[4 - past.shape[0] :] = past
        features = [model.columns.weight @ window + model.columns.bias[:, None]]  # (vertical, width)
        features = [features[0].T.flatten()]
        for height, layer in enumerate(model.rows, start=1):
            places = [layer(window[i : i + height].flatten()) for i in range(4 - height + 1)]
            features.append(torch.stack(places).relu().amax(dim=0))
        expected = model.norm(model.out(torch.cat(features)))
        torch.testing.assert_close(states[place], expected, rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_expected_share_and_mean() -> None:
    layer = Dropout(0.25)
    torch.manual_seed(0)
    dropped = layer(torch.ones(400, 500))
    # 0.25 = 64/256 exactly, so kept values are 4/3; three standard deviations of 200,000 draws are 0.003.
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.003)
    assert torch.equal(layer.eval()(torch.ones(3)), torch.ones(3))
    assert torch.equal(Dropout(0.0)(torch.ones(3)), torch.ones(3))


def points(n: int = 11, n_items: int = 30, width: int = 6, scale: float = 1.0):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=rng, dtype=torch.float64) * scale
    weight = torch.randn(n_items, width, generator=rng, dtype=torch.float64)
    targets = torch.randint(n_items, (n,), generator=rng)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def test_the_softmax_loss_by_hand() -> None:
    # One position, logits (0, ln 2, ln 3): softmax (1, 2, 3) / 6.
    hidden = torch.ones(1, 1)
    weight = torch.log(torch.tensor([[1.0], [2.0], [3.0]]))
    for target, probability in enumerate((1 / 6, 2 / 6, 3 / 6)):
        value = losses.softmax_loss(hidden, weight, torch.tensor([target]))
        assert value.item() == pytest.approx(-math.log(probability), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])  # small and overflowing logits
@pytest.mark.parametrize("block_size", [1, 4, 128])
def test_the_blockwise_loss_equals_the_plain_one(scale, block_size) -> None:
    hidden, weight, targets = points(scale=scale)
    expected = losses.softmax_loss(hidden, weight, targets).mean()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    value = losses.catalogue_loss(hidden, weight, targets, block_size=block_size)
    found = torch.autograd.grad(3 * value, (hidden, weight))
    torch.testing.assert_close(value, expected)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, 3 * b)


@pytest.mark.parametrize("main", [True, False])
def test_the_blockwise_robust_loss_equals_the_plain_one(main) -> None:
    hidden, weight, targets = points()
    popularity = torch.arange(30, dtype=torch.float64)
    log_popularity = (popularity / popularity.sum()).log()  # item 0 never occurs: log 0
    robust = losses.robust_loss(hidden, weight, targets, log_popularity, 0.3)
    total = 0.7 * robust + (losses.softmax_loss(hidden, weight, targets) if main else 0)
    wanted = torch.autograd.grad(total.mean(), (hidden, weight))
    base = losses.softmax_block(True) if main else losses.no_loss_block
    block = losses.robust_block(base, log_popularity, 0.3, 0.7)
    value = losses.catalogue_loss(hidden, weight, targets, block=block, block_size=4)
    torch.testing.assert_close(value, total.mean())
    for a, b in zip(torch.autograd.grad(value, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_robust_loss_equals_a_loop() -> None:
    hidden, weight, targets = points()
    share = np.random.default_rng(0).dirichlet(np.ones(30))
    found = losses.robust_loss(hidden, weight, targets, torch.from_numpy(np.log(share)), 0.5)
    for row in range(hidden.shape[0]):
        total = 0.0
        for item in range(30):
            score = 1 / (1 + math.exp(-float((hidden[row] @ weight[item]).detach())))
            error = score - (1.0 if item == targets[row] else 0.0)
            total += share[item] * math.exp(error**2 / 0.5)
        assert found[row].item() == pytest.approx(0.5 * math.log(total), rel=1e-6)


def test_a_high_temperature_is_the_popularity_weighted_mean_error() -> None:
    hidden, weight, targets = points()
    share = torch.full((30,), 1 / 30, dtype=torch.float64)
    found = losses.robust_loss(hidden, weight, targets, share.log(), 1e6)
    error = torch.sigmoid(hidden @ weight.T) - torch.nn.functional.one_hot(targets, 30)
    torch.testing.assert_close(found, error.square().mean(dim=1), rtol=1e-4, atol=1e-6)


def test_sampling_every_item_once_is_the_full_softmax() -> None:
    hidden, weight, targets = points()
    expected = losses.softmax_loss(hidden, weight, targets)
    found = losses.sampled_softmax_loss(hidden, weight, targets, torch.arange(30), torch.zeros(30))
    torch.testing.assert_close(found, expected)


def test_sampled_sums_are_unbiased_and_converge() -> None:
    hidden, weight, targets = points(scale=0.3)
    share = np.random.default_rng(0).dirichlet(np.full(30, 5.0))
    n = 200_000
    drawn = torch.from_numpy(np.random.default_rng(1).choice(30, size=n, p=share))
    found = losses.sampled_softmax_loss(hidden, weight, targets, drawn, torch.from_numpy(np.log(n * share)))
    torch.testing.assert_close(found, losses.softmax_loss(hidden, weight, targets), rtol=0.01, atol=0.01)


def test_the_binary_loss_by_hand() -> None:
    hidden, weight, targets = points()
    negatives = (targets + 1) % 30
    found = losses.binary_loss(hidden, weight, targets, negatives)
    for row in range(hidden.shape[0]):
        scores = (weight @ hidden[row]).tolist()
        good, bad = scores[targets[row]], scores[negatives[row]]
        expected = -math.log(1 / (1 + math.exp(-good))) - math.log(1 - 1 / (1 + math.exp(-bad)))
        assert found[row].item() == pytest.approx(expected, rel=1e-9)


def test_negatives_are_uniform_over_what_the_user_has_not_seen() -> None:
    users = np.repeat(np.array([0, 1], dtype=np.int32), 6_000)
    keys = np.array([0, 1, 2, 5 + 4])  # user 0 has seen items 0, 1, 2 of 5; user 1 has seen item 4
    drawn = losses.uniform_negatives(users, keys, 5, np.random.default_rng(0))
    assert set(drawn[users == 0]) == {3, 4}
    assert set(drawn[users == 1]) == {0, 1, 2, 3}
    # Four standard deviations of a share of 1/4 in 6,000 draws: 4 sqrt(3/16/6000) = 0.022.
    np.testing.assert_allclose(np.bincount(drawn[users == 1]) / 6_000, [0.25] * 4, atol=0.022)


def test_a_user_who_has_seen_everything_still_gets_a_negative() -> None:
    drawn = losses.uniform_negatives(np.zeros(4, dtype=np.int32), np.arange(3), 3, np.random.default_rng(0))
    assert ((drawn >= 0) & (drawn < 3)).all()


def test_validation_ndcg_equals_a_loop() -> None:
    data = ragged()
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    # Two targets each; users of one or two items have no history.
    held_out = place >= np.repeat(data.lengths - 2, data.lengths)
    train, valid = data.where(~held_out), data.where(held_out)
    model, values = network(), []
    weight = model.items.weight.detach()
    for user in range(data.n_users):
        if train.lengths[user] == 0 or valid.lengths[user] == 0:
            continue
        hidden = model(torch.from_numpy(train.history(user)[-3:].astype(np.int64))[None])[0, -1]
        scores = (weight @ hidden).tolist()
        targets, gain = set(valid.history(user).tolist()), 0.0
        for target in targets:
            seen = set(train.history(user).tolist()) - {target}
            competing = [item for item in range(data.n_items) if item not in seen]
            place = sorted(competing, key=lambda item: (-scores[item], item)).index(target)
            gain += 1 / math.log2(place + 2) if place < 5 else 0.0
        values.append(gain / sum(1 / math.log2(i + 2) for i in range(min(5, len(targets)))))
    for block_size in (3, 128):
        found = validation_ndcg(model, train, valid, max_length=3, k=5, block_size=block_size)
        assert found == pytest.approx(np.mean(values), rel=1e-9)


def test_tied_scores_are_ranked_by_item_code() -> None:
    data = cycle_dataset(n_users=20)
    last = np.isin(np.arange(data.n), data.indptr[1:] - 1)
    train, valid = data.where(~last), data.where(last)
    model = network()
    torch.nn.init.zeros_(model.items.weight)  # all scores are zero: the rank counts lower codes, unseen
    gains = []
    for user, target in enumerate(valid.items.tolist()):
        rank = 1 + len(set(range(target)) - set(train.history(user).tolist()))
        gains.append(1 / math.log2(rank + 1) if rank <= 3 else 0.0)
    assert 0 < np.mean(gains) < 1
    assert validation_ndcg(model, train, valid, max_length=12, k=3) == pytest.approx(np.mean(gains))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch.optim
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_those_of_torch(weight_decay) -> None:
    ours, theirs = network().double().train(), network().double().train()
    mine = AdamW(ours, 0.01, weight_decay)
    other = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=weight_decay)
    items = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        other.zero_grad()
        for one in (ours, theirs):
            losses.softmax_loss(one(items).flatten(0, 1), one.items.weight, items.flatten()).mean().backward()
        mine.step()
        other.step()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), value)
        assert ours.get_parameter(name).grad is None


SCHEDULE = Schedule(
    epochs=6, batch_size=16, learning_rate=0.01, weight_decay=0.01, patience=9, eval_every=1, seed=1
)


def full_softmax(hidden, weight, targets, users, rng):
    return losses.catalogue_loss(hidden, weight, targets)


def train(tmp_path=None, *, schedule=SCHEDULE, stop_after=None, evaluate=True, key=""):
    """Train a small network; raise KeyboardInterrupt in the evaluation after `stop_after` epochs."""
    data = ragged()
    model = network(dropout=0.3)
    calls = []

    def metric() -> float:
        if stop_after is not None and len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        return validation_ndcg(model, data, data, max_length=12)

    windows = training_windows(data, 6)
    progress = train_network(
        model,
        next_item_step(model, windows, full_softmax),
        len(windows),
        schedule,
        evaluate=metric if evaluate else None,
        checkpoint=tmp_path,
        key=key,
    )
    return model.state_dict(), progress


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [0, 1, 4])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, stop_after) -> None:
    whole, progress = train()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_after=stop_after)
    torch.rand(100)  # the caller's random state does not matter
    resumed, again = train(tmp_path)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert (again.epoch, again.best_epoch, again.best_ndcg) == (6, progress.best_epoch, progress.best_ndcg)
    assert [one["loss"] for one in again.history] == [one["loss"] for one in progress.history]
    assert [one["epoch"] for one in again.history] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_finished_training_is_not_repeated_and_can_be_extended(tmp_path) -> None:
    first, _ = train(tmp_path, schedule=replace(SCHEDULE, epochs=3))
    again, progress = train(tmp_path, schedule=replace(SCHEDULE, epochs=3), stop_after=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert progress.epoch == 3
    extended, _ = train(tmp_path)
    whole, _ = train()
    assert all(torch.equal(extended[name], whole[name]) for name in whole)


def test_no_partial_checkpoint_is_left_and_nothing_is_pickled(tmp_path) -> None:
    train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path) -> None:
    train(tmp_path)
    with pytest.raises(StorageError, match="other data or options"):
        train(tmp_path, key="other data")
    with pytest.raises(StorageError, match="other data or options"):
        train(tmp_path, schedule=replace(SCHEDULE, seed=2))


def test_a_damaged_checkpoint_is_an_error_with_a_remedy(tmp_path) -> None:
    (tmp_path / "training.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(StorageError, match=r"damaged .*delete it"):
        train(tmp_path)


def test_training_stops_early_and_restores_the_best_epoch() -> None:
    data, model, seen = ragged(), network(), []

    def metric() -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return [0.1, 0.5, 0.3, 0.5, 0.2, 0.9][len(seen) - 1]  # the best of the first five is the second

    windows = training_windows(data, 12)
    progress = train_network(
        model,
        next_item_step(model, windows, full_softmax),
        len(windows),
        replace(SCHEDULE, patience=3),
        evaluate=metric,
    )
    assert (progress.epoch, progress.best_epoch, progress.best_ndcg) == (5, 2, 0.5)
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(value, seen[4][name]) for name, value in model.state_dict().items())


def test_evaluations_can_be_spaced_out() -> None:
    _, progress = train(schedule=replace(SCHEDULE, eval_every=2, patience=100))
    assert ["valid_ndcg" in one for one in progress.history] == [False, True] * 3
    assert progress.best_epoch % 2 == 0


def test_without_validation_the_last_epoch_is_kept() -> None:
    _, progress = train(evaluate=False)
    assert (progress.epoch, progress.best_epoch) == (6, 6)
    losses_seen = [one["loss"] for one in progress.history]
    assert losses_seen[-1] < losses_seen[0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, _ = train()
    second, _ = train()
    other, _ = train(schedule=replace(SCHEDULE, seed=9))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["items.weight"], other["items.weight"])
