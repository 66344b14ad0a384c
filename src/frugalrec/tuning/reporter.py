"""What happens between steps: progress, validation after each epoch, and the best weights so far."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback

from frugalrec.runs import write_text
from frugalrec.tuning.base import Progress
from frugalrec.tuning.processes import unwrapped
from frugalrec.tuning.schedule import Course
from frugalrec.tuning.trained import trained_weights


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Passes steps on, and keeps the best epoch's weights where there is a validation set."""

    def __init__(
        self,
        progress: Progress | None,
        folder: Path,
        course: Course,
        validate: Callable[[Any], dict[str, float]],
        saved: Callable[[], None] | None = None,
    ) -> None:
        self.progress, self.folder, self.course, self.validate = progress, folder, course, validate
        self.saved = saved
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.trainer: Any = None

    @property
    def best(self) -> int | None:
        """The epoch of least validation loss so far."""
        return int(min(self.history, key=lambda entry: entry["loss"])["epoch"]) if self.history else None

    def weights_of(self, epoch: int | None) -> Path:
        """Return where an epoch's adapter is kept, if it was the best so far."""
        return self.folder / f"epoch-{epoch}.safetensors"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the epochs that a killed run had judged."""
        self.recall(state.global_step)

    def recall(self, step: int) -> bool:
        """Read the epochs that a killed run had judged up to a step; return whether they end the training."""
        path = self.folder / "validation.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            self.history = [e for e in known if self.course.ends[int(e["epoch"]) - 1] <= step]
        return self.course.exhausted(self.history)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Judge the model where an epoch ends, and tell of the step."""
        ends = self.course.ends
        if state.global_step in ends and (judged := self._judged(model)):
            self.history.append({"epoch": ends.index(state.global_step) + 1, **judged})
            if state.is_world_process_zero:
                self._keep(model)
            if args.report_to:
                log_too = control.should_log
                self.trainer.log({f"validation_{name}": value for name, value in judged.items()})
                control.should_log = log_too  # the step's own loss is still to come
            control.should_training_stop |= self.course.exhausted(self.history)
        if self.progress is not None and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)

    def _judged(self, model: Any) -> dict[str, float]:
        started = time.perf_counter()
        judged = self.validate(unwrapped(model))
        self.seconds += time.perf_counter() - started
        return judged

    def _keep(self, model: Any) -> None:
        epoch = int(self.history[-1]["epoch"])
        if self.best == epoch:
            aside = self.folder / ".epoch.safetensors"
            save_file(trained_weights(unwrapped(model)), aside)
            os.replace(aside, self.weights_of(epoch))
        write_text(self.folder / "validation.json", json.dumps(self.history))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of the checkpoint, and remove weights that nobody can want any more."""
        if self.saved is not None and state.is_world_process_zero:
            self.saved()
        # From here on no run goes back behind this epoch, so that only its best so far can be wanted.
        if state.is_world_process_zero and self.history:
            for path in self.folder.glob("epoch-*.safetensors"):
                if path != self.weights_of(self.best):
                    path.unlink()
