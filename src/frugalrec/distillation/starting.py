"""Where a student starts: vectors, a prefix, LoRA matrices, and the rates that they are trained at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frugalrec.distillation.options import TASK, DistilOptions
from frugalrec.distillation.wording import Prompt, beginning, words
from frugalrec.errors import ConfigError

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query


def start(
    student: LocalLM, prompt: Prompt, worded: Sequence[Query], options: DistilOptions
) -> list[dict[str, Any]]:
    """Put vectors in their start on a model, in place; return what is trained, with its rates.

    Args:
        student: A copy of the teacher.
        prompt: The worded prompt.
        worded: The teacher's queries.
        options: Mode and start.
    """
    from frugalrec.llm.prompt_vectors import add_prompt, token_embeddings

    network = student.network
    if options.mode == "lora":
        _add_matrices(student, options)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(options.mode == "lora" and "lora_" in name)
    matrices = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [{"params": matrices, "lr": options.lora_learning_rate}] if matrices else []
    if options.mode == "prefix-kv":
        return _start_prefix(student, prompt, worded, options)
    vectors = _vectors(student, prompt, options)
    size = float(token_embeddings(student).square().mean().sqrt())
    add_prompt(student, vectors)
    return [*groups, {"params": [vectors.weight], "lr": options.learning_rate * size}]


def _start_prefix(
    student: LocalLM, prompt: Prompt, worded: Sequence[Query], options: DistilOptions
) -> list[dict[str, Any]]:
    from frugalrec.llm.kv_prefix import KVPrefix, add_kv_prefix

    shared = beginning(student, prompt, worded)
    if len(shared) < options.n_vectors:
        raise ConfigError(
            f"all prompts begin with the same {len(shared)} tokens, fewer than n_vectors="
            f"{options.n_vectors}; learn at most so many positions."
        )
    whole = KVPrefix.read(student, shared)
    prefix = whole.shortened(options.n_vectors, "first" if options.start == "first" else "pooled")
    add_kv_prefix(student, prefix)
    tables = (prefix.keys, prefix.values)
    sizes = [float(table.detach().square().mean().sqrt()) for table in tables]
    return [
        {"params": [table], "lr": options.learning_rate * size}
        for table, size in zip(tables, sizes, strict=True)
    ]


def _vectors(student: LocalLM, prompt: Prompt, options: DistilOptions) -> Any:
    """Return the vectors before training."""
    import torch

    from frugalrec.llm.prompt_vectors import TaskPrompt, token_embeddings

    if options.start == "vocabulary":
        return TaskPrompt.from_vocabulary(student, [TASK], options.n_vectors, seed=options.seed)
    if options.start == "uniform":
        width = token_embeddings(student).shape[1]
        return TaskPrompt.uniform([TASK], options.n_vectors, width, seed=options.seed)
    opening, closing = words(prompt)
    before = options.n_vectors - options.cue_vectors
    parts = [TaskPrompt.from_words(student, {TASK: opening}, before).weight.detach()]
    if options.cue_vectors:
        parts.append(TaskPrompt.from_words(student, {TASK: closing}, options.cue_vectors).weight.detach())
    return TaskPrompt([TASK], torch.cat(parts, dim=1))


def _add_matrices(student: LocalLM, options: DistilOptions) -> None:
    """Give the student LoRA matrices, unless the teacher has some to go on with."""
    from frugalrec.tuning.lora import ALL_LINEAR, add_lora

    if student.adapter is None:
        student.network = add_lora(
            student.network,
            rank=options.rank,
            alpha=options.alpha,
            dropout=0.0,
            targets=ALL_LINEAR,
            seed=options.seed,
        )
