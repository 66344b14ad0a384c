"""Options that every tuner shares: the matrices, the schedule, and how the hardware is used."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from frugalrec.errors import ConfigError, MissingExtraError

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list of texts",
    NoneType: "null",
}
"""Kinds of values that options have, in words."""

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
    """Which layers get LoRA matrices: `all-linear`, or the last parts of their names, one or several."""
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
        """Check kinds and ranges."""
        check_kinds(self)
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


def check_kinds(options: TuningOptions) -> None:
    """Check that each field has a value of its own kind; Python itself does not look.

    Raises:
        ConfigError: If one has not, such as a fraction of an epoch.
    """
    for name, hint in get_type_hints(type(options)).items():
        kinds = _kinds(hint)
        value = getattr(options, name)
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(KINDS[kind] for kind in kinds)
            raise ConfigError(f"tuning: {name} must be {wanted}, not {value!r}.")


def _kinds(hint: Any) -> list[Any]:
    """Return the kinds of `KINDS` that a field's annotation allows."""
    if hint in KINDS:
        return [hint]
    if get_origin(hint) is tuple:
        return [tuple]
    if get_origin(hint) is Literal:
        return [str]
    return [kind for part in get_args(hint) for kind in _kinds(part)]


def _is(value: Any, kind: Any) -> bool:
    if kind is tuple:
        return isinstance(value, (tuple, list)) and all(isinstance(part, str) for part in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


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
