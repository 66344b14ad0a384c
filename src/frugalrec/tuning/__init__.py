"""LoRA on the kept samples."""

from __future__ import annotations

from frugalrec.tuning.base import TrainingRow, Tuner
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner, build_rows

__all__ = ["PointwiseConfig", "PointwiseTuner", "TrainingRow", "Tuner", "build_rows"]
