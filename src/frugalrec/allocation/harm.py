"""A threshold with a guarantee: of the users routed, at most a share alpha are harmed by the LLM.

Thresholds are tried in an order fixed beforehand, from the tenth of the calibration users with the highest
scores (or more, if a tenth without any harm could not prove alpha) down to everybody, and the search stops
at the first whose harm is not surely below alpha (exact binomial bound). Testing in a fixed order needs no
correction: with probability `confidence` over the draw of the calibration users, P(gain < 0 | routed) <=
alpha holds at the threshold returned (fixed-sequence testing, as in Learn then Test, Angelopoulos et al.
2021; the bound is Clopper and Pearson 1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from frugalrec.errors import ConfigError, DataError

STEPS = 10


@dataclass(frozen=True, kw_only=True)
class HarmThreshold:
    """The lowest score that may be routed, or None where no threshold qualifies."""

    threshold: float | None
    alpha: float
    confidence: float
    n: int
    """Calibration users."""
    routed: int
    """Calibration users at or above the threshold (the first one tried, where none qualifies)."""
    harmed: int
    """Of these, users whom the LLM served worse."""
    bound: float
    """Upper confidence bound of the share harmed, at that threshold."""

    def __str__(self) -> str:
        """Say in words what is guaranteed."""
        seen = f"{self.harmed} of {self.routed} calibration users harmed, surely at most {self.bound:.0%}"
        if self.threshold is None:
            return (
                f"no threshold keeps the share of harmed users at or below {self.alpha:.0%} with "
                f"{self.confidence:.0%} confidence (already at the first step: {seen}); route nobody, allow "
                f"more harm, or calibrate on more users."
            )
        return (
            f"route scores of at least {self.threshold:.4g}: with {self.confidence:.0%} confidence at most "
            f"{self.alpha:.0%} of those routed are harmed ({seen})."
        )


def harm_threshold(
    scores: NDArray[Any], gains: NDArray[Any], *, alpha: float = 0.2, confidence: float = 0.9
) -> HarmThreshold:
    """Choose the lowest threshold on scores that keeps harm at or below alpha, if there is one.

    Args:
        scores: Score of each calibration user, (n,), by a model that was *not* fitted on these users' gains:
            out-of-fold predictions, or better a second slice.
        gains: Their gains, (n,).
        alpha: The share of routed users who may be harmed.
        confidence: Probability, over the draw of calibration users, with which the guarantee holds.
    """
    s, delta = np.asarray(scores, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if not (0 < alpha < 1 and 0 < confidence < 1):
        raise ConfigError(f"alpha={alpha} and confidence={confidence} must lie between 0 and 1.")
    if s.shape != delta.shape or s.ndim != 1 or not s.size or np.isnan(s).any() or np.isnan(delta).any():
        raise DataError(f"give one score and one gain a user, none NaN; got {s.shape} and {delta.shape}.")
    ordered = np.sort(s)[::-1]
    # So many unharmed users prove alpha: smaller steps could only end the search. Known beforehand.
    least = math.log(1 - confidence) / math.log(1 - alpha)
    first = next((step for step in range(1, STEPS) if s.size * step / STEPS >= least), STEPS)
    best: HarmThreshold | None = None
    for step in range(first, STEPS + 1):
        cut = float(ordered[-(-s.size * step // STEPS) - 1])
        inside = s >= cut
        routed, harmed = int(inside.sum()), int((delta[inside] < 0).sum())
        bound = 1.0 if harmed == routed else float(betaincinv(harmed + 1, routed - harmed, confidence))
        found = HarmThreshold(
            threshold=cut if bound <= alpha else None,
            alpha=alpha,
            confidence=confidence,
            n=s.size,
            routed=routed,
            harmed=harmed,
            bound=bound,
        )
        if found.threshold is None:
            return best or found
        best = found
    return best or found
