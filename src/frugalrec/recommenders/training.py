"""Training of sequence networks: optimisation, validation, early stopping, exact resume.

No work is spent on padding: a batch holds randomly drawn windows, as usual, but runs through the
network in groups of similar length, and losses are computed at real positions only. Every random
draw comes from a stream named by (seed, epoch), so a training that was killed and resumed ends with
the same parameters, to the bit, as one that ran through (same machine, same number of threads).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from frugalrec.data.dataset import Dataset
from frugalrec.errors import StorageError
from frugalrec.recommenders.batching import Windows, last_states, position_states, ranges, recent
from frugalrec.recommenders.losses import LossFunction
from frugalrec.recommenders.networks import SequenceNetwork
from frugalrec.rng import derive_seed, generator
from frugalrec.types import LongArray

log = logging.getLogger(__name__)

StepFunction = Callable[[LongArray, np.random.Generator], tuple[Tensor, int]]
"""Takes the rows of some windows and the epoch's generator; returns the mean loss that an optimisation
step descends, and the number of positions it is the mean of."""


def next_item_step(network: SequenceNetwork, windows: Windows, loss: LossFunction) -> StepFunction:
    """Return the step of causal networks: every position of a window predicts the item after it."""

    def step(rows: LongArray, rng: np.random.Generator) -> tuple[Tensor, int]:
        states, targets, users = position_states(network, windows, rows)
        return loss(states, network.items.weight, targets, users, rng), targets.shape[0]

    return step


def validation_ndcg(
    network: SequenceNetwork,
    train: Dataset,
    valid: Dataset,
    *,
    max_length: int,
    k: int = 10,
    block_size: int = 128,
) -> float:
    """Return NDCG@k over the full catalogue, mean over users with history and held-out items.

    A target's rank is one plus the number of items with a higher score, ties in order of item code;
    the user's other history items do not compete. Memory is `block_size` rows of scores.
    """
    users = np.flatnonzero((valid.lengths > 0) & (train.lengths > 0)).astype(np.int32)
    if users.size == 0:
        return float("nan")
    states = last_states(network, *recent(train, users, max_length))
    counts = valid.lengths[users]
    _, positions = ranges(valid.indptr[users], counts)
    owner, targets = np.repeat(np.arange(users.size), counts), valid.items[positions].astype(np.int64)
    owner, targets = np.unique(np.stack([owner, targets]), axis=1)
    gains = np.zeros(owner.size)
    weight = network.items.weight.detach()
    for start in range(0, owner.size, block_size):
        rows = slice(start, start + block_size)
        target = torch.from_numpy(targets[rows])
        scores = states[torch.from_numpy(owner[rows])] @ weight.T
        chosen = scores.gather(1, target[:, None])
        known = users[owner[rows]]
        _, seen = ranges(train.indptr[known], train.lengths[known])
        scores[np.repeat(np.arange(known.size), train.lengths[known]), train.items[seen]] = -torch.inf
        scores.scatter_(1, target[:, None], chosen)
        rank = 1 + np.count_nonzero((scores > chosen).numpy(), axis=1)
        near = np.flatnonzero(rank <= k)  # ties matter to these only
        tied = (scores[near] == chosen[near]) & (torch.arange(scores.shape[1]) < target[near, None])
        rank[near] += np.count_nonzero(tied.numpy(), axis=1)
        gains[rows] = np.where(rank <= k, 1 / np.log2(rank + 1), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    relevant = np.bincount(owner, minlength=users.size)
    return float(np.mean(np.bincount(owner, gains, users.size) / ideal[np.minimum(relevant, k) - 1]))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to train; the options of the recommenders have the same names and meanings."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    eval_every: int
    seed: int


@dataclass(kw_only=True)
class Progress:
    """Where a training stands after an epoch; everything a checkpoint holds beside tensors."""

    epoch: int = 0
    best_epoch: int = 0
    best_ndcg: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)

    def exhausted(self, schedule: Schedule) -> bool:
        """Say whether training is over: all epochs done, or `patience` evaluations without gain."""
        if self.epoch >= schedule.epochs:
            return True
        waited = self.epoch - self.best_epoch
        return self.best_ndcg >= 0 and waited >= schedule.patience * schedule.eval_every


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), the moments as named tensors.

    `torch.optim` would do the same sums, but importing it costs seconds (it loads the compiler), more
    than training on a small data set takes.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        self.parameters = dict(network.named_parameters())
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = 0
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}

    @torch.no_grad()
    def step(self, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        """Move the parameters along their gradients, and clear those."""
        self.steps += 1
        rate = self.learning_rate / (1 - betas[0] ** self.steps)
        spread = (1 - betas[1] ** self.steps) ** 0.5
        for name, value in self.parameters.items():
            if value.grad is None:
                continue
            value.mul_(1 - self.learning_rate * self.weight_decay)
            first = self.first[name].lerp_(value.grad, 1 - betas[0])
            second = self.second[name].mul_(betas[1]).addcmul_(value.grad, value.grad, value=1 - betas[1])
            value.addcdiv_(first, second.sqrt().div_(spread).add_(epsilon), value=-rate)
            value.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return everything a resumed training needs; the tensors are shared, not copied."""
        return {
            "steps": torch.tensor(self.steps),
            **{f"first.{name}": value for name, value in self.first.items()},
            **{f"second.{name}": value for name, value in self.second.items()},
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""
        self.steps = int(state["steps"])
        self.first = _part(state, "first.")
        self.second = _part(state, "second.")


@contextmanager
def torch_session(threads: int | None, seed: int) -> Iterator[None]:
    """Run with `threads` torch threads and a private torch random stream, then put both back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def train_network(
    network: nn.Module,
    step: StepFunction,
    n_windows: int,
    schedule: Schedule,
    *,
    evaluate: Callable[[], float] | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    tell: Callable[[int, int], None] | None = None,
) -> Progress:
    """Train in place; with `evaluate`, stop early and restore the best epoch's parameters.

    Args:
        network: The network; on return it holds the best (or last) epoch, in evaluation mode.
        step: Loss of a batch of windows.
        n_windows: How many windows there are to learn from.
        schedule: Epochs, batch size and so on.
        evaluate: Returns the validation metric of the network as it is, higher is better.
        checkpoint: Folder of `training.safetensors`, written after every epoch; resumed from if present.
        key: What the training depends on besides the schedule; a checkpoint of another key is refused.
        tell: Is called after every epoch with (epochs done, epochs at most).
    """
    optimizer = AdamW(network, schedule.learning_rate, schedule.weight_decay)
    best = {name: value.detach().clone() for name, value in network.state_dict().items()}
    progress = Progress()
    # The number of epochs is no part of the key: a finished training may be asked for more.
    key = hashlib.sha256(json.dumps([key, {**asdict(schedule), "epochs": 0}]).encode()).hexdigest()
    if checkpoint is not None and (checkpoint / "training.safetensors").exists():
        progress = _resume(checkpoint, network, optimizer, best, key)
    while not progress.exhausted(schedule):
        started = time.perf_counter()
        progress.epoch += 1
        record = {
            "epoch": progress.epoch,
            "loss": _epoch(network, step, n_windows, schedule, optimizer, progress.epoch),
        }
        network.eval()
        if evaluate is None or progress.epoch % schedule.eval_every == 0:
            ndcg = float("nan") if evaluate is None else evaluate()
            record["valid_ndcg"] = ndcg
            if evaluate is None or ndcg > progress.best_ndcg:
                progress.best_epoch = progress.epoch
                progress.best_ndcg = progress.best_ndcg if evaluate is None else ndcg
                for name, value in network.state_dict().items():
                    best[name].copy_(value)
        record["seconds"] = time.perf_counter() - started
        progress.history.append(record)
        log.info("epoch %d: %s", progress.epoch, record)
        if checkpoint is not None:
            _save(checkpoint, network, optimizer, best, progress, key)
        if tell is not None:
            tell(progress.epoch, schedule.epochs)
    if progress.best_epoch:
        network.load_state_dict(best)
    network.eval()
    return progress


def _epoch(
    network: nn.Module,
    step: StepFunction,
    n_windows: int,
    schedule: Schedule,
    optimizer: AdamW,
    epoch: int,
) -> float:
    rng = generator(schedule.seed, "epoch", epoch)
    torch.manual_seed(derive_seed(schedule.seed, "dropout", epoch))
    network.train()
    total, positions = 0.0, 0
    order = rng.permutation(n_windows)
    for start in range(0, order.size, schedule.batch_size):
        value, count = step(order[start : start + schedule.batch_size], rng)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(value.detach()) * count
        positions += count
    return total / positions


def _save(
    folder: Path,
    network: nn.Module,
    optimizer: AdamW,
    best: dict[str, Tensor],
    progress: Progress,
    key: str,
) -> None:
    from safetensors.torch import save_file

    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "training.safetensors.part"
    # One file, renamed when complete: a kill at any instant leaves the previous checkpoint whole.
    metadata = {"key": key, "progress": json.dumps(asdict(progress))}
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata=metadata)
    os.replace(part, folder / "training.safetensors")


def _resume(
    folder: Path,
    network: nn.Module,
    optimizer: AdamW,
    best: dict[str, Tensor],
    key: str,
) -> Progress:
    from safetensors import safe_open

    path = folder / "training.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise StorageError(f"{path} is damaged ({error}); delete it to train from the start.") from error
    if metadata.get("key") != key:
        raise StorageError(
            f"{path} belongs to a training with other data or options; "
            f"give another checkpoint folder, or delete it to train from the start."
        )
    network.load_state_dict(_part(tensors, "network."))
    best.update(_part(tensors, "best."))
    optimizer.restore(_part(tensors, "optimizer."))
    return Progress(**json.loads(metadata["progress"]))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
