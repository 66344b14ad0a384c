"""Options of distillation: what is learned, from which start, by which loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from frugalrec.errors import ConfigError

Mode = Literal["vectors", "lora", "prefix-kv"]
Start = Literal["words", "vocabulary", "uniform", "pooled", "first"]
Over = Literal["vocabulary", "answers"]
TASK = "distilled"
"""What the vectors' tokens are called: ``<|distilled:0|>``."""


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """How a worded prompt becomes learned vectors."""

    n_vectors: int = 10
    """P: vectors, or positions of a prefix."""
    cue_vectors: int = 1
    """So many of the vectors stand behind the content, where the answer is asked; the others before it."""
    mode: Mode = "vectors"
    """`vectors` learns the vectors alone; `lora` also tunes LoRA matrices (the teacher's, or fresh ones);
    `prefix-kv` learns the keys and values of the words that all prompts begin with and keeps the others."""
    start: Start | None = None
    """Vectors: the mean embeddings of the `words` (default), tokens drawn from the `vocabulary`, or
    `uniform`. Prefix: the teacher's keys and values, `pooled` (default) or the `first` P positions."""
    over: Over = "vocabulary"
    """The teacher's distribution over all tokens, or over the answers (yes/no only)."""
    ranking: float = 0.0
    """Weight of a second term (yes/no): the distribution over a group's candidates by log-odds."""
    epochs: int = 5
    """Passes over the prompts."""
    learning_rate: float = 0.05
    """Peak rate of the vectors, as a share of the size (RMS) of the model's own embeddings."""
    lora_learning_rate: float = 2e-4
    """Peak rate of LoRA matrices."""
    rank: int = 8
    """Rank of fresh LoRA matrices."""
    alpha: int = 16
    """Scale of fresh LoRA matrices."""
    batch_size: int = 8
    """Prompts in one step."""
    max_tokens: int = 1024
    """Longest worded prompt, answers included; a longer one is an error."""
    seed: int = 0
    """Seed of drawn vectors, matrices and order."""

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        for name, kind in (("mode", Mode), ("over", Over)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(
                    f"distillation: {name} must be one of {known}, not {getattr(self, name)!r}."
                )
        starts = ("pooled", "first") if self.mode == "prefix-kv" else ("words", "vocabulary", "uniform")
        if self.start is not None and self.start not in starts:
            raise ConfigError(
                f"distillation: {self.mode} starts from {', '.join(starts)}, not from {self.start!r}."
            )
        for name in ("n_vectors", "epochs", "batch_size", "max_tokens", "rank", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distillation: {name} must be at least 1, not {getattr(self, name)}.")
        for name in ("learning_rate", "lora_learning_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"distillation: {name} must lie above 0 and be at most 1, not {getattr(self, name)}."
                )
        if not 0 <= self.cue_vectors < self.n_vectors and self.mode != "prefix-kv":
            raise ConfigError(
                f"distillation: of {self.n_vectors} vectors, 0 to {self.n_vectors - 1} can stand behind the "
                f"content, not {self.cue_vectors}."
            )
        if not self.ranking >= 0:
            raise ConfigError(f"distillation: ranking must be at least 0, not {self.ranking}.")

    @property
    def learned(self) -> tuple[str, str]:
        """The tokens of the vectors before the content, and behind it."""
        tokens = [f"<|{TASK}:{j}|>" for j in range(self.n_vectors)]
        cut = self.n_vectors - self.cue_vectors
        return "".join(tokens[:cut]), "".join(tokens[cut:])
