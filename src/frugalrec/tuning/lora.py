"""LoRA under the Hugging Face Trainer: train on packed groups, resume, save, reload, compare.

The final artefact is safetensors and JSON only. While it trains, the Trainer keeps one checkpoint
with its optimizer state, which a killed run resumes from (read with `weights_only`); the
checkpoints are removed once the adapter is saved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from frugalrec.errors import ModelError
from frugalrec.evaluation.pointwise import auc
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.prefix import Row
from frugalrec.rng import generator
from frugalrec.tuning.base import Progress
from frugalrec.tuning.losses import LOSSES
from frugalrec.tuning.packing import answer_logits, collate

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class LabelledGroup:
    """Prompts of one user, packed, with their labels."""

    packed: Row
    labels: NDArray[np.bool_]
    """True where the right answer is Yes, (n_prompts,)."""


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak: a tenth rises, the rest falls to 0.

    >>> [round(rate(step, 20), 2) for step in (0, 1, 2, 11, 19)]
    [0.33, 0.67, 1.0, 0.5, 0.06]
    """
    warm = steps // 10
    return min((step + 1) / (warm + 1), (steps - step) / (steps - warm))


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss reads the answer tokens only."""

    answers: tuple[int, int]
    loss_name: str

    def _get_train_sampler(self, *args: Any) -> Any:
        # The items are batches in their final order, so that a resumed run sees the ones it missed.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # No step at a rate of 0, as the usual warm-up begins with: few shots make few steps.
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer, partial(rate, steps=num_training_steps)
        )
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        logits = answer_logits(model, inputs, self.answers)
        loss = LOSSES[self.loss_name](logits, inputs["labels"], inputs["rows"])
        return (loss, logits) if return_outputs else loss


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Passes steps on, and keeps the best epoch's adapter where there is a validation set."""

    def __init__(
        self,
        progress: Progress | None,
        folder: Path,
        per_epoch: int,
        validate: Callable[[Any], dict[str, float]],
    ) -> None:
        self.progress, self.folder, self.per_epoch, self.validate = progress, folder, per_epoch, validate
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = self.folder / "validation.json"
        if path.is_file():  # a resumed run remembers the epochs that it had judged
            known = json.loads(path.read_text(encoding="utf-8"))
            self.history = [e for e in known if e["epoch"] * self.per_epoch <= state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.per_epoch == 0 and (judged := self.validate(model)):
            entry = {"epoch": state.global_step // self.per_epoch, **judged}
            if all(entry["loss"] < other["loss"] for other in self.history):
                save_file(adapter_weights(model), self.folder / "best.safetensors")
            self.history.append(entry)
            (self.folder / "validation.json").write_text(json.dumps(self.history), encoding="utf-8")
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)


def judge(
    model: Any, groups: Sequence[LabelledGroup], answers: tuple[int, int], loss: str
) -> dict[str, float]:
    """Return the loss and the pooled AUC of Yes against No over labelled groups."""
    logits = torch.cat(evaluate_groups(model, [group.packed for group in groups], answers))
    labels = torch.from_numpy(np.concatenate([group.labels for group in groups]))
    sizes = torch.tensor([group.labels.size for group in groups])
    numbers = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    odds = (logits[:, 0] - logits[:, 1]).numpy()
    return {"loss": float(LOSSES[loss](logits, labels, numbers)), "auc": auc(odds, labels.numpy())}


@torch.no_grad()
def evaluate_groups(model: Any, groups: Sequence[Row], answers: tuple[int, int]) -> list[torch.Tensor]:
    """Return the answer logits of each group, (n_prompts, 2) on the CPU, without dropout."""
    was_training = model.training
    model.eval()
    device, dtype = next(model.parameters()).device, compute_dtype(model)
    logits = []
    for group in groups:
        batch = {name: tensor.to(device) for name, tensor in collate([group], dtype).items()}
        logits.append(answer_logits(model, batch, answers).cpu())
    model.train(was_training)
    return logits


def compute_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the base model's weights (adapters may be kept in another)."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype


def add_lora(
    model: Any, *, rank: int, alpha: int, dropout: float, targets: str | Sequence[str], seed: int
) -> Any:
    """Return the model with fresh LoRA matrices; the base weights are frozen."""
    torch.manual_seed(seed)
    modules = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules, task_type="CAUSAL_LM"
    )
    with quiet_peft():
        return get_peft_model(model, config)


def train(
    model: Any,
    groups: Sequence[LabelledGroup],
    validation: Sequence[LabelledGroup],
    answers: tuple[int, int],
    folder: Path,
    *,
    epochs: int,
    learning_rate: float,
    groups_per_batch: int,
    loss: str,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the LoRA matrices in place and return the curve.

    Args:
        model: The model with LoRA matrices.
        groups: Training groups.
        validation: Groups that choose among the epochs; may be empty.
        answers: Token ids of Yes and No.
        folder: Where checkpoints live while training goes on.
        epochs: Passes over the groups.
        learning_rate: Peak rate; see `rate`.
        groups_per_batch: Groups in one step.
        loss: Name in `LOSSES`.
        seed: Seed of order and dropout.
        progress: Is told of the steps.

    Returns:
        `loss_curve` ((step, loss) pairs), `validation` (one entry an epoch), `best_epoch`, `resumed_at`.
    """
    dtype = compute_dtype(model)

    def collator(items: Sequence[Sequence[LabelledGroup]]) -> dict[str, torch.Tensor]:
        (batch,) = items
        inputs = collate([group.packed for group in batch], dtype)
        inputs["labels"] = torch.from_numpy(np.concatenate([group.labels for group in batch]))
        return inputs

    def validate(current: Any) -> dict[str, float]:
        return judge(current, validation, answers, loss) if validation else {}

    order = batches([group.packed.length for group in groups], groups_per_batch, epochs, seed)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the batches of all epochs, one after the other
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        weight_decay=0.0,
        logging_steps=1,
        save_steps=max(1, len(order) // 8),
        save_total_limit=1,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    # Prompts of a batch refer to each other's rows: no splitting over GPUs inside one process.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    reporter = _Reporter(progress, folder, len(order) // epochs, validate)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=[[groups[i] for i in batch] for batch in order],
        data_collator=collator,
        callbacks=[reporter],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.answers, trainer.loss_name = answers, loss
    checkpoint = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    best = None
    if reporter.history:
        best = min(reporter.history, key=lambda entry: entry["loss"])["epoch"]
        load_adapter_weights(model, load_file(folder / "best.safetensors"))
    curve = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    return {
        "loss_curve": curve,
        "validation": reporter.history,
        "best_epoch": best,
        "resumed_at": 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]),
    }


def batches(lengths: Sequence[int], size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the batches of all epochs: seeded order, groups of similar length together.

    Args:
        lengths: Tokens of each group.
        size: Groups in a batch; the last of an epoch may be smaller.
        epochs: Passes over the groups.
        seed: Seed of the order; each epoch has its own.
    """
    order: list[list[int]] = []
    for epoch in range(epochs):
        rng = generator(seed, "tuning", "order", epoch)
        shuffled = rng.permutation(len(lengths))
        # Sorting inside pools of eight batches saves most padding and keeps the order random enough.
        pools = [shuffled[i : i + 8 * size] for i in range(0, shuffled.size, 8 * size)]
        similar = np.concatenate([sorted(pool, key=lambda i: -lengths[i]) for pool in pools])
        cut = [similar[i : i + size].tolist() for i in range(0, similar.size, size)]
        order += [cut[i] for i in rng.permutation(len(cut))]
    return order


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; half-written ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        newest = found.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            shutil.rmtree(newest)
        else:
            return newest
    return None


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the LoRA matrices by parameter name."""
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


@torch.no_grad()
def load_adapter_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy LoRA matrices back into the model."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(weights[name])


def save(model: Any, folder: Path) -> str:
    """Write the adapter (safetensors and JSON) and return the SHA-256 of its weights.

    Raises:
        ModelError: If training left every lora_B matrix zero: such an adapter does nothing.
    """
    matrices = adapter_weights(model)
    if not any(bool(m.any()) for name, m in matrices.items() if "lora_B" in name):
        raise ModelError("every lora_B matrix is zero: nothing was learned. Raise epochs or learning_rate.")
    if not all(bool(torch.isfinite(m).all()) for m in matrices.values()):
        raise ModelError("the adapter holds values that are not finite numbers. Lower learning_rate.")
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
