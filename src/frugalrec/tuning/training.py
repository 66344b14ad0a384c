"""Training under the Hugging Face Trainer: any task, seeded order, validation, checkpoints, resume.

What is learned is the business of a `Task`. While it trains, the Trainer keeps one checkpoint with its
optimizer state, which a killed run resumes from (read with `weights_only`). Under `accelerate launch`
each process computes its share of every step.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from frugalrec.tuning.base import Progress
from frugalrec.tuning.fast_lora import fast_lora
from frugalrec.tuning.processes import is_main, processes, unwrapped, wait
from frugalrec.tuning.reporter import Reporter
from frugalrec.tuning.schedule import Course, batches, rate, shares
from frugalrec.tuning.task import Item, Task
from frugalrec.tuning.trained import load_trained_weights, trained_weights

FACTOR = "share_factor"
TRAINED = "trained.safetensors"
"""What a checkpoint keeps of a network: the weights that are trained."""


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is a task's, over shares of batches in their final order."""

    task: Task[Any]
    course: Course

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Only what is trained, by its own names: what stays as it was need not be written.
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained_weights(unwrapped(self.model)), folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / TRAINED)
        load_trained_weights(unwrapped(self.model if model is None else model), weights)

    def _get_train_sampler(self, *args: Any) -> Any:
        # The items are batches in their final order, so that a resumed run sees the ones it missed.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # No step at a rate of 0, as the usual warm-up begins with: few shots make few steps.
        share = partial(rate, steps=num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            (lambda step: 1.0) if self.course.constant else share,
        )
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        factor = inputs.pop(FACTOR)
        loss = self.task.loss(model, inputs)
        # A share that only fills up may have no loss at all.
        loss = loss * factor if bool(factor) else loss.nan_to_num() * 0
        return (loss, None) if return_outputs else loss


def train(
    model: Any,
    task: Task[Item],
    items: Sequence[Item],
    validation: Sequence[Item],
    folder: Path,
    *,
    epochs: int,
    learning_rate: float,
    items_per_batch: int,
    seed: int,
    accumulation: int = 1,
    report_to: Sequence[str] = (),
    progress: Progress | None = None,
    saved: Callable[[], None] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train what has gradients in place, such as LoRA matrices, and return the curve.

    Args:
        model: The model; only what is trained in it requires gradients.
        task: What is learned.
        items: Training items.
        validation: Items that choose among the epochs; may be empty.
        folder: Where checkpoints live while training goes on.
        epochs: Passes over the items.
        learning_rate: Peak rate; see `rate`.
        items_per_batch: Items in one step, over all processes.
        seed: Seed of order and dropout.
        accumulation: Passes that each process splits its part of a step into.
        report_to: Experiment trackers; see `TRACKERS`.
        progress: Is told of the steps.
        saved: Is told of each checkpoint once it is whole, in the main process.
        groups: Parameters with rates of their own, as ``torch.optim.AdamW`` takes them.

    Returns:
        `loss_curve` ((step, loss) pairs), `validation` (one entry an epoch), `best_epoch`, `resumed_at`,
        and of this call `training_seconds` and `validation_seconds`.
    """
    order = batches([task.length(item) for item in items], items_per_batch, epochs, seed)
    per_epoch = len(order) // epochs
    ends = range(per_epoch, len(order) + 1, per_epoch)
    return follow(
        model,
        task,
        items,
        Course(order=order, ends=ends, learning_rate=learning_rate),
        validation,
        folder,
        weights=[task.weight(item) for item in items],
        seed=seed,
        accumulation=accumulation,
        report_to=report_to,
        progress=progress,
        saved=saved,
        groups=groups,
    )


def follow(
    model: Any,
    task: Task[Item],
    items: Sequence[Item],
    course: Course,
    validation: Sequence[Item],
    folder: Path,
    *,
    weights: Sequence[float],
    seed: int,
    accumulation: int = 1,
    report_to: Sequence[str] = (),
    progress: Progress | None = None,
    saved: Callable[[], None] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train what requires a gradient, in place, with batches that are settled; see `train`.

    Args:
        model: The network; its parameters that require a gradient are trained and kept.
        task: What is learned.
        items: Training items of all epochs; each is asked for when its batch comes.
        course: The batches and how steps are taken.
        validation: Items that choose among the epochs; may be empty.
        folder: Where checkpoints live while training goes on.
        weights: How much each item counts in its batch; see `Task.weight`.
        seed: Seed of dropout.
        accumulation: See `train`.
        report_to: See `train`.
        progress: See `train`.
        saved: See `train`.
        groups: See `train`.
    """
    parts = [part for batch in course.order for part in shares(batch, weights, accumulation * processes())]

    def collator(only: Sequence[tuple[list[int], float]]) -> dict[str, torch.Tensor]:
        ((rows, factor),) = only
        return {**task.collate([items[row] for row in rows]), FACTOR: torch.tensor(factor)}

    def validate(current: Any) -> dict[str, float]:
        return task.judge(current, validation) if validation else {}

    reporter = Reporter(progress, folder, course, validate, saved)
    with _logs_beside(folder):
        trainer = _Trainer(
            model=model,
            args=_arguments(model, folder, course, accumulation, report_to, seed),
            train_dataset=parts,
            data_collator=collator,
            callbacks=[reporter],
            optimizers=(_optimizer(groups, course), None),
        )
    trainer.remove_callback(PrinterCallback)
    # The loss is a mean of shares: the Trainer divides by their number, not by a number of labels.
    trainer.task, trainer.model_accepts_loss_kwargs, reporter.trainer = task, False, trainer
    trainer.course = course
    checkpoint = newest_checkpoint(folder)
    started = time.perf_counter()
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if checkpoint is not None and reporter.recall(resumed_at):  # killed after it had run out of patience
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        with fast_lora(model):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    wait()  # for the files of the main process
    if reporter.best is not None:
        load_trained_weights(model, load_file(reporter.weights_of(reporter.best)))
    return {
        "loss_curve": [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e],
        "validation": reporter.history,
        "best_epoch": reporter.best,
        "resumed_at": resumed_at,
        "training_seconds": seconds - reporter.seconds,
        "validation_seconds": reporter.seconds,
    }


def _optimizer(groups: Sequence[Mapping[str, Any]] | None, course: Course) -> Any:
    """Return an optimizer of parameter groups; None leaves it to the Trainer."""
    if groups is None:
        return None
    rate, decay = course.learning_rate, course.weight_decay
    return torch.optim.AdamW([dict(group) for group in groups], lr=rate, weight_decay=decay)


@contextmanager
def _logs_beside(folder: Path) -> Iterator[None]:
    """Let TensorBoard write beside the checkpoints, which are removed in the end, not among them."""
    name = "TENSORBOARD_LOGGING_DIR"
    own = os.environ.get(name)
    os.environ.setdefault(name, str(folder.parent / "tensorboard"))
    try:
        yield
    finally:
        if own is None:
            del os.environ[name]


def _arguments(
    model: Any,
    folder: Path,
    course: Course,
    accumulation: int,
    report_to: Sequence[str],
    seed: int,
) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the batches of all epochs, one after the other
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=course.learning_rate,
        weight_decay=course.weight_decay,
        max_grad_norm=course.clip,
        logging_steps=1,
        save_steps=max(1, len(course.order) // 8),
        save_total_limit=1,
        seed=seed,
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    # Prompts of a batch refer to each other's rows: no splitting over GPUs inside one process.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; half-written ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        newest = found.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            (newest / TRAINED).stat()
        except (OSError, ValueError):
            if is_main():
                shutil.rmtree(newest)
        else:
            return newest
    return None
