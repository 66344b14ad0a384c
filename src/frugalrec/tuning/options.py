"""Options that every tuner shares: the matrices, the schedule, and how the hardware is used."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

from frugalrec.errors import ConfigError, MissingExtraError

Method = Literal["lora", "rslora", "dora", "qlora"]

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Names of experiment trackers -> packages of which one must be there."""


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What every tuner can be told."""

    epochs: int = 2
    """Passes over the rows."""
    learning_rate: float = 5e-4
    """Peak rate; the tenth part of the steps warms up, then it falls to 0."""
    rank: int = 8
    """Rank of the LoRA matrices."""
    alpha: int = 16
    """LoRA scale; updates are multiplied by alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: float = 0.05
    """Share of the inputs of the LoRA matrices that is dropped at random while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers get LoRA matrices, in PEFT's words."""
    layers: int | None = None
    """Tune the top layers only (an encoder-decoder: the decoder's); nothing below them is differentiated,
    and a causal network's rows are read by what is below once, not in each epoch."""
    method: Method = "lora"
    """`rslora` scales by the root of the rank, `dora` tunes lengths and directions apart, `qlora` keeps
    the base in 4 bits (CUDA and bitsandbytes)."""
    batch_size: int = 16
    """Rows in one step, over all processes and accumulated passes together."""
    accumulation: int = 1
    """Passes that a step is split into, to save memory; the step stays the same."""
    gradient_checkpointing: bool = False
    """Keep only what enters a layer and compute the rest again: less memory, about a third slower."""
    max_tokens: int = 512
    """Longest prompt."""
    start: str | None = None
    """An adapter's folder whose matrices tuning starts from; default: fresh ones."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers that are told the loss: tensorboard, wandb, mlflow."""
    seed: int = 0
    """Seed of the matrices, of the order and of dropout."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("epochs", "rank", "alpha", "batch_size", "accumulation", "max_tokens", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"tuning: {name} must be at least 1, not {value}.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"tuning: learning_rate must lie between 0 and 1, not {self.learning_rate}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"tuning: dropout must be at least 0 and below 1, not {self.dropout}.")
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ConfigError(f"tuning: unknown method {self.method!r}; choose one of {known}.")
        check_trackers(self.report_to)


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that experiment trackers are known and installed.

    Raises:
        ConfigError: If a name is not in `TRACKERS`.
        MissingExtraError: If its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}; choose from {', '.join(TRACKERS)}.")
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            raise MissingExtraError(
                f"reporting to {name} needs a package that is not installed. "
                f"Install it with: pip install {TRACKERS[name][0]}"
            )
