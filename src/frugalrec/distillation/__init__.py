"""A worded prompt becomes a few learned vectors, and ranking becomes one pass: training, teachers, export."""

from __future__ import annotations

from frugalrec.distillation.pod import PodConfig, PodModel
from frugalrec.distillation.pod_loading import load_pod
from frugalrec.distillation.pod_training import PodTrainer
from frugalrec.distillation.scratch import scratch_t5
from frugalrec.distillation.templates import IdWriter, write_ids, write_titles

__all__ = [
    "IdWriter",
    "PodConfig",
    "PodModel",
    "PodTrainer",
    "load_pod",
    "scratch_t5",
    "write_ids",
    "write_titles",
]
