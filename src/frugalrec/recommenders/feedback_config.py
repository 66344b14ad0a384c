"""What the yes/no baselines are called, how each is built, and the options they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from frugalrec.errors import ConfigError
from frugalrec.recommenders.networks import CaserNetwork, GRU4RecNetwork, SASRecNetwork, SequenceNetwork

PointwiseLoss = Literal["mse", "bce"]


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """How a baseline is built and trained; the defaults are small, for 16 to 8,000 rows on a CPU."""

    embedding_size: int = 64
    """Width of title vectors and hidden states."""
    layers: int = 1
    """Recurrent layers or attention blocks."""
    heads: int = 2
    """Attention heads (SASRec); must divide `embedding_size`."""
    window: int = 5
    """Titles that a filter can see (Caser)."""
    horizontal: int = 16
    """Horizontal filters of each height (Caser)."""
    vertical: int = 4
    """Vertical filters (Caser)."""
    dropout: float = 0.2
    """Share of values dropped in training."""
    max_length: int = 50
    """The most recent titles of a row that the network sees."""
    loss: PointwiseLoss | None = None
    """Squared error of the probability, or binary cross-entropy; None: mse for SASRec, bce for the others."""
    unknown_rate: float = 0.1
    """Share of titles hidden at random in training, so that the vector of unseen titles means something."""
    robustness: float = 0.5
    """Weight of the robust part (DROS)."""
    temperature: float = 0.2
    """How evenly the robust part looks at the groups (DROS)."""
    groups: int = 4
    """Groups of rows by how often their target occurs (DROS)."""
    epochs: int = 60
    """The most passes over the rows."""
    batch_size: int = 64
    """Rows an optimisation step sees."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    patience: int = 10
    """Stop after this many epochs without a better validation AUC."""
    seed: int = 0
    """Seed of initial values, order and dropout."""
    threads: int | None = None
    """Torch threads while fitting; None leaves torch's setting."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the names stand for."""

    body: Callable[[int, FeedbackConfig], SequenceNetwork]
    """Takes the number of titles and the configuration."""
    text: bool = False
    """Whether titles are text vectors."""
    robust: bool = False
    """Whether the loss is robust against shifts in popularity."""
    loss: PointwiseLoss = "bce"


def _gru(n_items: int, config: FeedbackConfig) -> SequenceNetwork:
    return GRU4RecNetwork(
        n_items, embedding_size=config.embedding_size, layers=config.layers, dropout=config.dropout
    )


def _caser(n_items: int, config: FeedbackConfig) -> SequenceNetwork:
    return CaserNetwork(
        n_items,
        embedding_size=config.embedding_size,
        window=config.window,
        horizontal=config.horizontal,
        vertical=config.vertical,
        dropout=config.dropout,
    )


def _sasrec(n_items: int, config: FeedbackConfig) -> SequenceNetwork:
    return SASRecNetwork(
        n_items,
        embedding_size=config.embedding_size,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
        max_length=config.max_length,
    )


FEEDBACK_MODELS: Mapping[str, Architecture] = {
    "gru4rec": Architecture(body=_gru),
    "caser": Architecture(body=_caser),
    "sasrec": Architecture(body=_sasrec, loss="mse"),
    "dros": Architecture(body=_gru, robust=True),
    "gru-bert": Architecture(body=_gru, text=True),
    "dros-bert": Architecture(body=_gru, text=True, robust=True),
}
"""Name -> architecture, in the order of the paper's table."""


def architecture(name: str, config: FeedbackConfig) -> Architecture:
    """Return the architecture of a name, or refuse the name or an option of the configuration.

    Raises:
        ConfigError: If either makes no sense.
    """
    if name not in FEEDBACK_MODELS:
        raise ConfigError(f"unknown baseline {name!r}; there are: {', '.join(FEEDBACK_MODELS)}.")
    if config.loss is not None and config.loss not in get_args(PointwiseLoss):
        raise ConfigError(f"{name}: loss must be mse or bce, not {config.loss!r}.")
    for option in ("dropout", "unknown_rate"):
        if not 0 <= getattr(config, option) < 1:
            raise ConfigError(
                f"{name}: {option} must be at least 0 and below 1, not {getattr(config, option)}."
            )
    for option in _POSITIVE:
        if getattr(config, option) <= 0:
            raise ConfigError(f"{name}: {option} must be above 0, not {getattr(config, option)}.")
    for option in ("robustness", "weight_decay"):
        if getattr(config, option) < 0:
            raise ConfigError(f"{name}: {option} must not be negative, but it is {getattr(config, option)}.")
    if config.embedding_size % config.heads:
        raise ConfigError(
            f"{name}: heads must divide embedding_size; "
            f"{config.heads} does not divide {config.embedding_size}."
        )
    return FEEDBACK_MODELS[name]


_POSITIVE = (
    "embedding_size",
    "layers",
    "heads",
    "window",
    "horizontal",
    "vertical",
    "max_length",
    "temperature",
    "groups",
    "epochs",
    "batch_size",
    "learning_rate",
    "patience",
)
