"""One tuning run, from a base model to a checked adapter, whatever is learned."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from frugalrec.errors import ModelError
from frugalrec.llm.adapters import WEIGHTS, read_manifest, read_weights
from frugalrec.llm.models import sha256_of
from frugalrec.runs import write_text
from frugalrec.tuning import integrity, lora
from frugalrec.tuning.base import Progress
from frugalrec.tuning.kept_states import keep_states
from frugalrec.tuning.options import TuningOptions
from frugalrec.tuning.processes import is_main, wait
from frugalrec.tuning.reload import fresh_copy
from frugalrec.tuning.spent import Spent
from frugalrec.tuning.task import Item, Task
from frugalrec.tuning.training import train
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[Item]):
    """What a run learns."""

    task: Task[Item]
    items: Sequence[Item]
    """Training items."""
    validation: Sequence[Item] = ()
    """Items that choose among the epochs."""
    n_rows: int
    """Training rows; an item may hold several."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the adapter's evidence."""


def adapt(
    base: LocalLM,
    plan: Callable[[LocalLM], Plan[Any]],
    out: Path,
    *,
    options: TuningOptions,
    content: Any,
    progress: Progress | None = None,
) -> Adapter:
    """Tune fresh LoRA matrices on a copy of the base model, and keep them only if they reload exactly.

    Args:
        base: The plain model; it is left as it is.
        plan: Given the copy that will be trained, says what it learns.
        out: The adapter's folder; a killed call with the same arguments goes on where it was, and a
            finished one is found finished.
        options: How to train.
        content: JSON-ready: all else that the result depends on, rows included.
        progress: Is told of the steps.

    Raises:
        ModelError: If the base carries an adapter already, or `options.start` does not fit.
    """
    if base.adapter is not None:
        raise ModelError(f"{base.model} already carries the adapter {base.adapter}; tune the plain model.")
    spent = Spent()
    start = None if options.start is None else read_weights(Path(options.start))
    key = _key(base, options, content)
    if _is_finished(out, key):
        return _finished(out, base)
    checkpoints = prepared(out, key)
    spent.resume(checkpoints)
    fresh = fresh_copy(base, four_bit=options.method == "qlora")
    chosen = plan(fresh)
    model, outcome = _trained(fresh.network, chosen, options, start, checkpoints, progress, spent)
    if not is_main():
        wait()
        return _finished(out, base)
    fresh.network = model
    probes = chosen.task.queries(chosen.items[: integrity.N_PROBES])
    draft = integrity.write(fresh, out, probes, base=base, key=key)
    n_parameters = sum(matrix.numel() for name, matrix in model.named_parameters() if "lora_" in name)
    del model, fresh  # before the next copy is loaded
    changed = integrity.publish(draft, base)
    length, epochs, steps = chosen.task.length, options.epochs, len(outcome["loss_curve"])
    evidence = {
        **outcome,
        "config": asdict(options),
        "rows": chosen.n_rows,
        "trainable_parameters": n_parameters,
        "tokens_trained": epochs * sum(map(length, chosen.items)),
        "tokens_validated": epochs * sum(map(length, chosen.validation)),
        **chosen.evidence,
        "reload_difference": changed,
        **spent.read(),
        # A resumed run has trained only the steps after its checkpoint.
        "samples_per_second": epochs
        * chosen.n_rows
        * (1 - outcome["resumed_at"] / steps)
        / outcome["training_seconds"],
        "versions": versions(),
    }
    write_text(out / integrity.EVIDENCE, json.dumps(evidence, indent=1))
    shutil.rmtree(checkpoints)
    wait()
    return _finished(out, base)


def _trained(
    network: Any,
    plan: Plan[Any],
    options: TuningOptions,
    start: Mapping[str, Any] | None,
    checkpoints: Path,
    progress: Progress | None,
    spent: Spent,
) -> tuple[Any, dict[str, Any]]:
    model = lora.add_lora(
        network,
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        targets=options.target_modules,
        seed=options.seed,
        layers=options.layers,
        method=options.method,
    )
    if start is not None:
        lora.start_from(model, start, Path(str(options.start)))
    if options.gradient_checkpointing:
        lora.recompute_layers(model)
    started = time.perf_counter()
    task = plan.task
    if options.layers is not None and not options.gradient_checkpointing:
        task = keep_states(task, model, options.layers, plan.items, plan.validation)
    reading_s = time.perf_counter() - started
    outcome = train(
        model,
        task,
        plan.items,
        plan.validation,
        checkpoints,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        items_per_batch=max(1, options.batch_size * len(plan.items) // plan.n_rows),
        seed=options.seed,
        accumulation=options.accumulation,
        report_to=options.report_to,
        progress=progress,
        saved=lambda: spent.keep(checkpoints),
    )
    outcome["training_seconds"] += reading_s
    return model, outcome


def _finished(out: Path, base: LocalLM) -> Adapter:
    evidence = json.loads((out / integrity.EVIDENCE).read_text(encoding="utf-8"))
    return Adapter(path=out, base=base.model, sha256=sha256_of(out / WEIGHTS), evidence=evidence)


def _is_finished(out: Path, key: str) -> bool:
    """Return whether this very call has left a whole adapter."""
    if not (out / integrity.EVIDENCE).is_file():
        return False
    try:
        manifest = read_manifest(out)
        if manifest is None or manifest.get("key") != key:
            return False
        read_weights(out)
    except ModelError:  # damaged since: it is tuned again
        return False
    return True


def _key(base: LocalLM, options: TuningOptions, content: Any) -> str:
    start = None if options.start is None else sha256_of(Path(options.start) / WEIGHTS)
    said = {name: value for name, value in asdict(options).items() if name not in ("start", "report_to")}
    text = json.dumps([base.fingerprint, said, start, content, versions()])
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that training depends on."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def prepared(out: Path, key: str) -> Path:
    """Return the checkpoint folder, emptied unless it belongs to the same call."""
    checkpoints = out / "checkpoints"
    mark = checkpoints / "key.txt"
    if is_main() and (not mark.is_file() or mark.read_text(encoding="utf-8") != key):
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        mark.write_text(key, encoding="utf-8")
    wait()
    return checkpoints
