"""Time that a tuning run takes, over all calls that it was killed and resumed in."""

from __future__ import annotations

import json
import time
from pathlib import Path

from frugalrec.runs import write_text

SPENT = "spent.json"


class Spent:
    """A clock that starts with the call and, once it knows the checkpoints, goes on where they were.

    Of a killed call the time up to its last checkpoint counts; what it did after that is lost with it.
    """

    def __init__(self) -> None:
        self.started, self.cpu_started = time.perf_counter(), time.process_time()
        self.earlier = {"seconds": 0.0, "cpu_seconds": 0.0}

    def resume(self, folder: Path) -> None:
        """Add what earlier calls have spent, as their checkpoints' folder says."""
        path = folder / SPENT
        if path.is_file():
            self.earlier = json.loads(path.read_text(encoding="utf-8"))

    def read(self) -> dict[str, float]:
        """Return `seconds` of the clock and `cpu_seconds` of this process, earlier calls included."""
        return {
            "seconds": self.earlier["seconds"] + time.perf_counter() - self.started,
            "cpu_seconds": self.earlier["cpu_seconds"] + time.process_time() - self.cpu_started,
        }

    def keep(self, folder: Path) -> None:
        """Write what has been spent so far beside the checkpoints."""
        write_text(folder / SPENT, json.dumps(self.read()))
