"""One forward pass for the whole catalogue: an LLM's last state, tuned to point at item titles.

A user's vector is what their titles say plus what the LLM makes of the prompt,

    u = p + W h,

p the mean title vector of the history, h the state of the prompt's last token (normalised), and every
item is scored by the cosine-like product ``u . v_i`` with its title vector, so no text is generated
and no list of candidates is needed. LoRA matrices in the top layers and W are tuned by the softmax over
all items. Layers below are frozen, and read each prompt once (`frugalrec.llm.frozen_layers`), so one
more adapter costs seconds. Title vectors lie in the space of the LLM's output embeddings, where W = 1
is the LLM's own next-token view of the titles' words; `head_start` of it is where tuning begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.fresh_lora import with_lora
from frugalrec.llm.frozen_layers import FrozenLayers, TokenStates
from frugalrec.llm.prompts import clean_title
from frugalrec.tuning.lora import top_targets
from frugalrec.tuning.schedule import batches
from frugalrec.types import FloatArray, IntArray, LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


Criterion = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Takes scores of all items, (b, n_items), and the prompts' numbers; returns a loss each, (b,)."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Some users' prompts, read by the frozen layers, and their histories' mean title vectors."""

    states: TokenStates
    """One text a prompt."""
    profiles: FloatArray
    """(n_prompts, width), rows of length 1 (or 0 without history)."""

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.states)


@dataclass(frozen=True, kw_only=True)
class ItemHeadConfig:
    """How the head is tuned."""

    layers: int = 1
    """Top layers of the LLM that get LoRA matrices."""
    rank: int = 8
    """Rank of the LoRA matrices."""
    alpha: int = 16
    """LoRA scale; updates are multiplied by alpha / rank."""
    epochs: int = 3
    """Passes over the prompts."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW; a tenth of the steps rises, the rest falls to 0."""
    batch_size: int = 16
    """Prompts in a step."""
    weight_decay: float = 0.01
    scale: float = 10.0
    """What scores are multiplied by inside the softmax: an inverse temperature."""
    head_start: float = 0.1
    """W at the start, times the identity. At 0 the LoRA matrices would get no gradient at first."""
    seed: int = 0
    """Seed of the LoRA matrices and of the order."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("layers", "rank", "alpha", "epochs", "learning_rate", "batch_size", "scale"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"item head: {name} must be above 0, not {getattr(self, name)}.")


def output_title_vectors(lm: LocalLM, titles: Sequence[str], *, max_tokens: int = 24) -> FloatArray:
    """Return one vector per title in the space of the LLM's output embeddings, (n, width), length 1.

    The mean of its tokens' output embeddings, rare tokens weighted up (inverse document frequency
    over the titles), minus the mean over all titles. An item without title gets zeros.

    Args:
        lm: The model.
        titles: The titles.
        max_tokens: Tokens of a title that count.
    """
    texts = [f" {clean_title(title, 1 << 20)}" if title.strip() else "" for title in titles]
    tokenized = lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [np.array(tokens[:max_tokens], dtype=np.int64) for tokens in tokenized]
    table = lm.network.get_output_embeddings().weight.detach().float().cpu().numpy()
    seen = np.zeros(table.shape[0])
    for row in rows:
        seen[np.unique(row)] += 1
    weights = np.log((1 + len(rows)) / (1 + seen)) + 1
    vectors = np.zeros((len(rows), table.shape[1]), dtype=np.float32)
    for number, row in enumerate(rows):
        if row.size:
            vectors[number] = (table[row] * weights[row, None]).sum(axis=0) / weights[row].sum()
    full = np.array([row.size > 0 for row in rows])
    vectors[full] -= vectors[full].mean(axis=0)
    return _unit(vectors)


def profiles(vectors: FloatArray, histories: Sequence[IntArray]) -> FloatArray:
    """Return the direction of each history's mean title vector, (n, width); zeros without history.

    Args:
        vectors: Item vectors, (n_items, width).
        histories: Item codes of each history.
    """
    means = np.zeros((len(histories), vectors.shape[1]), dtype=np.float32)
    for row, history in enumerate(histories):
        if history.size:
            means[row] = vectors[history].mean(axis=0)
    return _unit(means)


class ItemHead:
    """A head on an LLM whose top layers carry fresh LoRA matrices; use `item_head`."""

    def __init__(self, layers: FrozenLayers, vectors: FloatArray, config: ItemHeadConfig) -> None:
        self.layers, self.config = layers, config
        device = layers.network.device
        self.vectors = torch.from_numpy(vectors).to(device)
        self.linear = torch.nn.Linear(vectors.shape[1], vectors.shape[1], device=device)
        torch.nn.init.eye_(self.linear.weight).data.mul_(config.head_start)
        torch.nn.init.zeros_(self.linear.bias)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The tuned parameters by name: LoRA matrices, then the head."""
        lora = {name: p for name, p in self.layers.network.named_parameters() if "lora_" in name}
        return lora | {f"head.{name}": p for name, p in self.linear.named_parameters()}

    def logits(self, prompts: Prompts, rows: Sequence[int]) -> torch.Tensor:
        """Return ``scale * u . v`` of some prompts and all items, (b, n_items)."""
        found: torch.Tensor = self.config.scale * self._users(prompts, rows) @ self.vectors.T
        return found

    def losses(self, prompts: Prompts, rows: Sequence[int], targets: torch.Tensor) -> torch.Tensor:
        """Return ``-log softmax(scale * u . v)[target]`` of some prompts, (b,)."""
        logits = self.logits(prompts, rows)
        return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="none")

    def fit(
        self, prompts: Prompts, targets: NDArray[Any], criterion: Criterion | None = None
    ) -> dict[str, Any]:
        """Tune on all prompts; return the losses by epoch, samples and seconds.

        Args:
            prompts: The prompts.
            targets: The item that followed each, (n_prompts,).
            criterion: Another loss than the cross-entropy of the targets.

        Raises:
            DataError: If there are no prompts, or not one target each.
        """
        if len(prompts) == 0 or len(prompts) != targets.size:
            raise DataError(f"{len(prompts)} prompts and {targets.size} targets; give one target a prompt.")
        config, wanted = self.config, torch.from_numpy(targets.astype(np.int64))
        order = batches(prompts.states.lengths.tolist(), config.batch_size, config.epochs, config.seed)
        tuned = list(self.parameters.values())
        optimizer = torch.optim.AdamW(tuned, lr=config.learning_rate, weight_decay=config.weight_decay)
        rising = max(1, len(order) // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / rising, (len(order) - step) / (len(order) - rising + 1))
        )
        losses, start = [], time.perf_counter()
        for rows in order:
            if criterion is None:
                loss = self.losses(prompts, rows, wanted[rows]).mean()
            else:
                loss = criterion(self.logits(prompts, rows), rows).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append((float(loss.detach()), len(rows)))
        seen = np.array(losses).reshape(config.epochs, -1, 2)
        return {
            "loss_by_epoch": (seen.prod(axis=2).sum(axis=1) / len(prompts)).tolist(),
            "samples": len(prompts),
            "wall_s": time.perf_counter() - start,
        }

    @torch.no_grad()
    def users(self, prompts: Prompts, *, max_batch_tokens: int = 4096) -> FloatArray:
        """Return one vector per prompt, (n, width); its products with the item vectors are the scores."""
        found = np.zeros((len(prompts), self.vectors.shape[1]), dtype=np.float32)
        for rows in token_batches(prompts.states.lengths.tolist(), max_batch_tokens):
            found[rows] = self._users(prompts, rows).float().cpu().numpy()
        return found

    def _users(self, prompts: Prompts, rows: Sequence[int]) -> torch.Tensor:
        if prompts.states.cut != self.layers.cut:
            raise ConfigError(
                f"the prompts were read up to layer {prompts.states.cut}, the head tunes from layer "
                f"{self.layers.cut} on; read them with layers={len(self.layers.tuned)}."
            )
        state = self.layers.last(*prompts.states.padded(rows)).float()
        said = torch.from_numpy(prompts.profiles[list(rows)]).to(state.device)
        users: torch.Tensor = said + self.linear(torch.nn.functional.normalize(state, dim=1))
        return users


@contextmanager
def item_head(lm: LocalLM, vectors: FloatArray, config: ItemHeadConfig | None = None) -> Iterator[ItemHead]:
    """Yield a fresh head on a model without adapter; its LoRA matrices are removed again.

    Args:
        lm: A causal model.
        vectors: Item vectors, (n_items, width), for example `output_title_vectors`.
        config: How it is tuned.

    Raises:
        ConfigError: If the vectors are not those of this model, or it has fewer layers.
        ModelError: If the model carries an adapter, or has no layer for LoRA matrices.
    """
    config = config or ItemHeadConfig()
    if lm.adapter is not None:
        raise ModelError(f"{lm.model} carries the adapter {lm.adapter}; load it without, or merge it first.")
    layers = FrozenLayers(lm.network, config.layers)
    if vectors.shape[1] != lm.network.config.get_text_config().hidden_size:
        raise ConfigError(
            f"item vectors have {vectors.shape[1]} values, the model's states have "
            f"{lm.network.config.get_text_config().hidden_size}; take output_title_vectors of this model."
        )
    targets = top_targets(lm.network, config.layers)
    use = ("tuning", "item-head")
    with with_lora(lm, config.rank, config.alpha, targets, config.seed, use=use):
        yield ItemHead(layers, vectors, config)


def read_prompts(
    lm: LocalLM,
    texts: Sequence[str],
    histories: Sequence[IntArray],
    vectors: FloatArray,
    *,
    layers: int,
    **options: Any,
) -> Prompts:
    """Read prompts with the layers that stay frozen.

    Args:
        lm: The model.
        texts: The prompts.
        histories: Item codes that each prompt shows.
        vectors: Item vectors, (n_items, width).
        layers: `ItemHeadConfig.layers` of the head that will be tuned.
        **options: See `FrozenLayers.read`.
    """
    states = FrozenLayers(lm.network, layers).read(lm.encode(texts), **options)
    return Prompts(states=states, profiles=profiles(vectors, histories))


def histories_of(dataset: Dataset, users: NDArray[Any]) -> list[IntArray]:
    """Return the items of each user, oldest first."""
    return [dataset.items[dataset.indptr[user] : dataset.indptr[user + 1]] for user in users]


def example_histories(examples: Examples) -> list[IntArray]:
    """Return the history of each example."""
    return [examples.history(row) for row in range(len(examples))]


def take(prompts: Prompts, rows: LongArray) -> Prompts:
    """Return some prompts."""
    return Prompts(states=prompts.states.take(rows), profiles=prompts.profiles[rows])


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
