"""What one server takes on: sizes of batches, queue, bodies and answers."""

from __future__ import annotations

from dataclasses import dataclass

from frugalrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server; whatever exceeds one is refused with a status that says so."""

    batch: int = 8
    """Texts written at the same time."""
    gather_s: float = 0.005
    """How long a batch waits for company."""
    queue: int = 64
    """Texts that may wait; more are answered 429."""
    body_bytes: int = 1 << 20
    """The longest request body; longer ones are answered 413."""
    prompts: int = 32
    """Prompts in one request of /v1/completions."""
    max_tokens: int = 512
    """The most tokens an answer may have, and what it may have where the request does not say."""
    kept_tokens: int = 4096
    """Tokens of recent prompts whose keys and values are kept, so that texts which begin alike are not
    read again; 0 keeps none."""
    shutdown_s: float = 30.0
    """How long a stopping server finishes what it has begun."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("batch", "queue", "body_bytes", "prompts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("gather_s", "kept_tokens", "shutdown_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}.")
        if self.prompts > self.queue:
            raise ConfigError(
                f"a request of {self.prompts} prompts would never fit a queue of {self.queue}; "
                "raise queue or lower prompts."
            )
