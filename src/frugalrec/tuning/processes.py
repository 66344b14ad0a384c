"""Several processes that train together, as `accelerate launch` starts them; one where it did not."""

from __future__ import annotations

import os
from typing import Any

import torch


def processes() -> int:
    """Return how many processes train together, as `accelerate launch` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Take this process's own GPU, where `accelerate launch` started several; before a model is loaded."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Return whether this is the process that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Wait until all processes are here; nothing where there is one."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def unwrapped(model: Any) -> Any:
    """Return the network inside a wrapper for several processes; itself where there is none."""
    return getattr(model, "module", model)
