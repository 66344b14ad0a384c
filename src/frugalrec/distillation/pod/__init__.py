"""POD (CIKM 2023) without its leaks: vectors for words, three tasks, templates, training, saving."""

from __future__ import annotations

from frugalrec.distillation.pod.loading import load_pod
from frugalrec.distillation.pod.model import PodConfig, PodModel
from frugalrec.distillation.pod.scratch import scratch_t5
from frugalrec.distillation.pod.templates import IdWriter, write_ids, write_titles
from frugalrec.distillation.pod.training import PodTrainer

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
