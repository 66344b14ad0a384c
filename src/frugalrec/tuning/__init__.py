"""LoRA on the kept samples."""

from __future__ import annotations

from frugalrec.tuning.base import TrainingRow, Tuner
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner
from frugalrec.tuning.rows import build_rows

__all__ = ["PointwiseConfig", "PointwiseTuner", "TrainingRow", "Tuner", "build_rows"]
