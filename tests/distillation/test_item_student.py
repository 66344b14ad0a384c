"""A student with an item head, and what teachers tell it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from frugalrec.data.dataset import Dataset
from frugalrec.data.simulate import film_club
from frugalrec.data.splits import Split, split
from frugalrec.distillation.item_student import ItemStudent
from frugalrec.distillation.soft_targets import SoftTargets, distillation_block, teach
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders.batching import Windows, training_windows
from frugalrec.recommenders.losses import catalogue_loss
from frugalrec.recommenders.sequential import SASRec
from frugalrec.recommenders.title_match import TitleMatch

SMALL = {"embedding_size": 8, "layers": 1, "heads": 1, "max_length": 12, "threads": 1, "seed": 3}


@pytest.fixture(scope="module")
def folds() -> Split:
    return split(film_club(n_members=60), "leave-last-out")


@pytest.fixture(scope="module")
def titles(folds: Split) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(folds.train.n_items, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def teacher(folds: Split) -> SASRec:
    return SASRec(**SMALL, epochs=2).fit(folds.train, folds.valid)


def scores(model: ItemStudent | SASRec, folds: Split, users: np.ndarray | None = None) -> np.ndarray:
    users = folds.users("test")[:20] if users is None else users
    return model.score(users, folds.history("test"))


def plain_loss(
    states: torch.Tensor, weight: torch.Tensor, soft: SoftTargets, hard: list[int], w: float, t: float
):
    """One position after the other, from the definition."""
    total = torch.zeros(())
    for row, state in enumerate(states):
        s = weight @ state
        said = torch.zeros(len(weight))
        said[soft.items[row]] = torch.from_numpy(soft.probabilities[row])
        own = -torch.log_softmax(s, 0)[hard[row]]
        total = total + (1 - w) * own - w * t**2 * (said * torch.log_softmax(s / t, 0)).sum()
    return total / len(states)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("w", "t"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.6, 2.5), (0.5, 0.2)])
def test_loss_and_gradient_are_those_of_the_definition(w: float, t: float, safe: bool) -> None:
    rng = np.random.default_rng(1)
    items = np.stack([rng.permutation(11)[:4] for _ in range(7)]).astype(np.int32)
    shares = rng.dirichlet(np.ones(4), size=7).astype(np.float32)
    soft, hard = SoftTargets(items=items, probabilities=shares), rng.integers(11, size=7)
    found, wanted = [], []
    for parts, fused in ((found, True), (wanted, False)):
        states = torch.tensor(
            np.random.default_rng(2).normal(size=(7, 5)), dtype=torch.float32, requires_grad=True
        )
        weight = torch.tensor(
            np.random.default_rng(3).normal(size=(11, 5)), dtype=torch.float32, requires_grad=True
        )
        if fused:
            block = distillation_block(soft, torch.from_numpy(hard), w, t, safe=safe)
            loss = catalogue_loss(states, weight, torch.arange(7), block=block, block_size=3)
        else:
            loss = plain_loss(states, weight, soft, hard.tolist(), w, t)
        loss.backward()
        parts += [loss.detach(), states.grad, weight.grad]
    for ours, naive in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, naive, atol=2e-6, rtol=1e-5)


def test_teachers_say_what_their_softmax_says(folds: Split, teacher: SASRec) -> None:
    windows = training_windows(folds.train, 12)
    soft = teach([teacher, teacher], windows, k=folds.train.n_items)
    np.testing.assert_allclose(soft.probabilities.sum(axis=1), 1, atol=1e-5)
    network = teacher.network_
    with torch.no_grad():
        for window in (0, len(windows) - 1):
            row = slice(windows.indptr[window], windows.indptr[window + 1])
            states = network(torch.from_numpy(windows.inputs[row])[None])[0]
            wanted = torch.softmax(states @ network.items.weight.T, dim=1).numpy()
            order = np.argsort(soft.items[row], axis=1)
            found = np.take_along_axis(soft.probabilities[row], order, axis=1)
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    few = teach([teacher], windows, k=5)
    np.testing.assert_array_equal(few.items, soft.items[:, :5])


def test_without_words_prompt_and_teacher_it_is_sasrec(folds: Split, teacher: SASRec) -> None:
    student = ItemStudent(**SMALL, epochs=2).fit(folds.train, folds.valid)
    assert student.network_.items.project is None
    # The same recipe; only the order in which initial values are drawn differs.
    assert abs(student.history_[0]["loss"] - teacher.history_[0]["loss"]) < 0.05


@pytest.mark.slow
def test_a_teacher_is_followed(folds: Split, teacher: SASRec) -> None:
    """Taught by the teacher alone, a student comes closer to its lists than one taught by the data."""
    windows = training_windows(folds.train, 12)
    options = SMALL | {"seed": 4, "dropout": 0.0, "learning_rate": 1e-2, "batch_size": 16}
    soft = teach([teacher], windows, k=folds.train.n_items)
    alone = ItemStudent(**options, epochs=4).fit(folds.train)
    taught = ItemStudent(**options, epochs=4, soft=soft, soft_weight=1.0).fit(folds.train)
    wanted = torch.log_softmax(torch.from_numpy(scores(teacher, folds)), dim=1)

    def gap(model: ItemStudent) -> float:
        found = torch.log_softmax(torch.from_numpy(scores(model, folds)), dim=1)
        return float((wanted.exp() * (wanted - found)).sum(dim=1).mean())

    assert gap(taught) < 0.5 * gap(alone)


def test_batches_and_order_do_not_matter(folds: Split, titles: np.ndarray) -> None:
    student = ItemStudent(**SMALL, epochs=1, title_vectors=titles, prompt_vectors=3).fit(folds.train)
    users = folds.users("test")[:12]
    together = scores(student, folds, users)
    alone = np.concatenate([scores(student, folds, users[n : n + 1]) for n in range(users.size)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(scores(student, folds, users[::-1]), together[::-1], atol=1e-5)


def test_the_last_state_is_that_of_the_whole_pass(folds: Split, titles: np.ndarray) -> None:
    network = (
        ItemStudent(**SMALL, title_vectors=titles, prompt_vectors=3)._network(folds.train.n_items).eval()
    )
    items = torch.randint(folds.train.n_items, (4, 6), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 1, 3, 5])
    with torch.no_grad():
        whole = network(items)[torch.arange(4), lengths - 1]
        torch.testing.assert_close(network.next_states(items, lengths), whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network.items(items), network.items.weight[items])


def test_words_let_unseen_items_be_told_apart(folds: Split, titles: np.ndarray) -> None:
    student = ItemStudent(**SMALL, epochs=1, title_vectors=titles).fit(folds.train)
    weight = student.network_.items.weight - student.network_.items.free
    assert float(weight.detach().std(dim=0).min()) > 0


def test_killed_and_resumed_equals_unbroken(folds: Split, titles: np.ndarray, tmp_path: Path) -> None:
    windows = training_windows(folds.train, 12)
    rng = np.random.default_rng(0)
    n = windows.targets.size
    soft = SoftTargets(
        items=np.tile(np.arange(3, dtype=np.int32), (n, 1)),
        probabilities=rng.dirichlet(np.ones(3), n).astype(np.float32),
    )
    options = SMALL | {"title_vectors": titles, "prompt_vectors": 2, "soft": soft}
    whole = ItemStudent(**options, epochs=3).fit(folds.train, folds.valid)
    ItemStudent(**options, epochs=1, checkpoint=tmp_path).fit(folds.train, folds.valid)
    resumed = ItemStudent(**options, epochs=3, checkpoint=tmp_path).fit(folds.train, folds.valid)
    np.testing.assert_array_equal(scores(resumed, folds), scores(whole, folds))


def test_save_load_and_what_is_refused(folds: Split, titles: np.ndarray, tmp_path: Path) -> None:
    student = ItemStudent(**SMALL, epochs=1, title_vectors=titles).fit(folds.train)
    student.save(tmp_path)
    again = ItemStudent(**SMALL, title_vectors=titles).load(tmp_path, folds.train)
    np.testing.assert_array_equal(scores(again, folds), scores(student, folds))
    with pytest.raises(DataError, match="another catalogue or other title vectors"):
        ItemStudent(**SMALL, title_vectors=-titles).load(tmp_path, folds.train)
    other: Dataset = split(film_club(n_members=60, seed=5), "leave-last-out").train
    assert other.n_items == folds.train.n_items
    with pytest.raises(DataError, match="another catalogue"):
        ItemStudent(**SMALL, title_vectors=titles).load(tmp_path, other)


def test_a_share_of_the_titles_is_chosen_kept_and_refused_without_them(
    folds: Split, titles: np.ndarray, tmp_path: Path
) -> None:
    plain = ItemStudent(**SMALL, epochs=1, title_vectors=titles).fit(folds.train, folds.valid)
    options = SMALL | {"title_vectors": titles, "match_shares": (0.5, 1000.0)}
    student = ItemStudent(**options, epochs=1, checkpoint=tmp_path / "c").fit(folds.train, folds.valid)
    assert student.match_share_ in (0.0, 0.5, 1000.0)
    student.match_share_ = 0.5
    match = TitleMatch(vectors=titles).fit(folds.train)
    users, history = folds.users("test")[:9], folds.history("test")
    wanted = plain.score(users, history) + 0.5 * match.score(users, history)
    np.testing.assert_allclose(student.score(users, history), wanted, atol=1e-5)
    student.save(tmp_path / "s")
    again = ItemStudent(**options).load(tmp_path / "s", folds.train)
    np.testing.assert_array_equal(again.score(users, history), student.score(users, history))
    with pytest.raises(ConfigError, match="match_shares"):
        ItemStudent(**SMALL, match_shares=(0.1,)).fit(folds.train, folds.valid)
    with pytest.raises(ConfigError, match="match_shares"):
        ItemStudent(**options, epochs=1).fit(folds.train)


def test_a_cold_softmax_does_not_overflow() -> None:
    soft = SoftTargets(items=np.array([[0]], np.int32), probabilities=np.ones((1, 1), np.float32))
    vectors = {"title_vectors": None, "soft": soft, "soft_weight": 0.5, "temperature": 0.2}
    step = ItemStudent(**SMALL, **vectors)._step  # what training calls
    network = ItemStudent(**SMALL)._network(2).eval()
    with torch.no_grad():
        network.items.free.copy_(torch.tensor([[20.0] * 8, [-20.0] * 8]))
    windows = Windows(
        users=np.zeros(1, np.int32),
        indptr=np.array([0, 1]),
        inputs=np.array([0]),
        targets=np.array([1]),
    )
    loss, _ = step(network, windows, None)(np.array([0]), np.random.default_rng(0))  # type: ignore[arg-type]
    loss.backward()
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(network.items.free.grad).all())


def test_bad_options(folds: Split, titles: np.ndarray) -> None:
    with pytest.raises(DataError, match="title vectors for"):
        ItemStudent(**SMALL, title_vectors=titles[:3]).fit(folds.train)
    with pytest.raises(ConfigError, match="soft_weight"):
        ItemStudent(**SMALL, soft_weight=1.5).fit(folds.train)
    soft = SoftTargets(items=np.zeros((2, 1), np.int32), probabilities=np.ones((2, 1), np.float32))
    with pytest.raises(DataError, match="2 positions do not fit"):
        ItemStudent(**SMALL, soft=soft).fit(folds.train)
    with pytest.raises(ConfigError, match="loss='softmax'"):
        ItemStudent(**SMALL, soft=soft, loss="bce").fit(folds.train)
    with pytest.raises(DataError, match="no distribution"):
        SoftTargets(items=np.zeros((2, 1), np.int32), probabilities=np.full((2, 1), 0.5, np.float32))
    with pytest.raises(DataError, match="one shape"):
        SoftTargets(items=np.zeros((2, 1), np.int32), probabilities=np.ones((2, 2), np.float32))
    with pytest.raises(ConfigError, match="need a teacher"):
        teach([], training_windows(folds.train, 12))
