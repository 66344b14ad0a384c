"""LoRA under the Hugging Face Trainer: train on packed groups, resume, save, reload, compare.

The final artefact is safetensors and JSON only. While it trains, the Trainer keeps one checkpoint
with its optimizer state, which a killed run resumes from (read with `weights_only`); the
checkpoints are removed once the adapter is saved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from frugalrec.errors import ModelError
from frugalrec.tuning.base import Progress
from frugalrec.tuning.packing import Packed, answer_logits, collate

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class LabelledGroup:
    """Prompts of one user, packed, with their labels."""

    packed: Packed
    labels: NDArray[np.bool_]
    """True where the right answer is Yes, (n_prompts,)."""


def two_way_loss(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over (Yes, No) at the answer position; other tokens play no part.

    Args:
        logits: (n, 2), Yes first.
        labels: (n,), true for Yes.
        groups: (n,); not used.
    """
    return torch.nn.functional.cross_entropy(logits, (~labels).long())


def listwise_loss(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean over groups of -log softmax(log-odds) at the group's positives.

    It asks for the right order inside a user's list and leaves the overall rate of Yes alone, which
    is what re-ranking needs.

    Args:
        logits: (n, 2), Yes first.
        labels: (n,), true for Yes.
        groups: (n,), group number of each row, 0..n_groups - 1.
    """
    odds = logits[:, 0] - logits[:, 1]
    member = groups[None, :] == torch.arange(int(groups.max()) + 1, device=groups.device)[:, None]
    total = torch.logsumexp(odds[None, :].masked_fill(~member, -torch.inf), dim=1)  # (n_groups,)
    positive = (member & labels[None, :]).float()
    counted = positive.sum(dim=1)
    mean = (positive * odds[None, :]).sum(dim=1) / counted.clamp(min=1)
    return (total - mean)[counted > 0].mean()


LOSSES = {"two-way": two_way_loss, "listwise": listwise_loss}


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss reads the answer tokens only."""

    answers: tuple[int, int]
    loss_name: str

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
        validation: Sequence[LabelledGroup],
        answers: tuple[int, int],
        folder: Path,
        loss: str,
    ) -> None:
        self.progress, self.validation, self.answers = progress, validation, answers
        self.folder, self.loss = folder, loss
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = self.folder / "validation.json"
        if path.is_file():  # a resumed run remembers the epochs that it had judged
            known = json.loads(path.read_text(encoding="utf-8"))
            self.history = [entry for entry in known if entry["epoch"] <= (state.epoch or 0)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.validation:
            return
        entry = {"epoch": float(round(state.epoch)), **judge(model, self.validation, self.answers, self.loss)}
        if all(entry["loss"] < other["loss"] for other in self.history):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(adapter_weights(model), self.folder / "best.safetensors")
        self.history.append(entry)
        (self.folder / "validation.json").write_text(json.dumps(self.history), encoding="utf-8")


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


def auc(scores: NDArray[Any], labels: NDArray[np.bool_]) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties one half; NaN if none."""
    positives, negatives = scores[labels], np.sort(scores[~labels])
    if not positives.size or not negatives.size:
        return float("nan")
    below = np.searchsorted(negatives, positives, "left")
    upto = np.searchsorted(negatives, positives, "right")
    return float((below + upto).mean() / (2 * negatives.size))


@torch.no_grad()
def evaluate_groups(model: Any, groups: Sequence[Packed], answers: tuple[int, int]) -> list[torch.Tensor]:
    """Return the answer logits of each group, (n_prompts, 2) on the CPU, without dropout."""
    was_training = model.training
    model.eval()
    device, dtype = next(model.parameters()).device, compute_dtype(model)
    logits = []
    for group in groups:
        batch = {key: value.to(device) for key, value in collate([group], dtype).items()}
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
        learning_rate: Peak rate; a tenth of the steps warm up, then it falls to 0.
        groups_per_batch: Groups in one step.
        loss: Name in `LOSSES`.
        seed: Seed of order and dropout.
        progress: Is told of the steps.

    Returns:
        `loss_curve` ((step, loss) pairs), `validation` (one entry an epoch), `best_epoch`, `resumed_at`.
    """
    dtype = compute_dtype(model)
    items = [{"input_ids": g.packed.tokens.tolist(), "group": g} for g in groups]

    def collator(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = collate([item["group"].packed for item in batch], dtype)
        inputs["labels"] = torch.from_numpy(np.concatenate([item["group"].labels for item in batch]))
        return inputs

    steps = epochs * -(-len(groups) // groups_per_batch)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=groups_per_batch,
        train_sampling_strategy="group_by_length",
        warmup_steps=max(1, steps // 10),
        weight_decay=0.0,
        logging_steps=1,
        save_steps=max(1, steps // 8),
        save_total_limit=1,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    reporter = _Reporter(progress, validation, answers, folder, loss)
    trainer = _Trainer(
        model=model, args=arguments, train_dataset=items, data_collator=collator, callbacks=[reporter]
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


def check_reload(
    fresh: Any, folder: Path, groups: Sequence[Packed], answers: tuple[int, int], trained: list[torch.Tensor]
) -> float:
    """Load the adapter on a fresh base model and compare logits with the trained model's.

    Returns:
        The largest absolute difference.

    Raises:
        ModelError: If the difference exceeds 1e-3 of the largest logit.
    """
    reloaded = PeftModel.from_pretrained(fresh, str(folder))
    again = evaluate_groups(reloaded, groups, answers)
    difference = max(float((a - b).abs().max()) for a, b in zip(trained, again, strict=True))
    scale = max(1.0, *(float(a.abs().max()) for a in trained))
    if not difference <= 1e-3 * scale:
        raise ModelError(
            f"the saved adapter in {folder} gives other logits than the trained model "
            f"(largest difference {difference:.3g}). Tune again; if it recurs, report your peft version."
        )
    return difference
