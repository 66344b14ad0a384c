"""LoRA on the kept samples."""

from __future__ import annotations

from frugalrec.tuning.base import TitleRow, TrainingRow, Tuner
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner
from frugalrec.tuning.rows import build_rows, few_shots, title_rows

__all__ = [
    "GenerativeConfig",
    "GenerativeTuner",
    "PointwiseConfig",
    "PointwiseTuner",
    "TitleRow",
    "TrainingRow",
    "Tuner",
    "build_rows",
    "few_shots",
    "title_rows",
]
