"""Distillation of a worded prompt into learned vectors: teacher and student are one network.

The teacher is a (tuned) model under its worded prompt; the student is the same frozen network under P
learned vectors and the bare content. The loss is KL(teacher || student) where answers come, so no label
is needed. POD (CIKM 2023), which gave the idea its name, trains everything on labels instead.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from frugalrec.distillation.lessons import Lesson, check_lengths, lessons, title_queries, yes_no_queries
from frugalrec.distillation.options import DistilOptions
from frugalrec.distillation.starting import start
from frugalrec.distillation.wording import Prompt, beginning
from frugalrec.errors import ConfigError, require
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.tuning.base import Progress, TitleRow, TrainingRow

if TYPE_CHECKING:
    from frugalrec.distillation.learning import DistilTask
    from frugalrec.distillation.teacher import Table
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

YesNoPrompt = TypeVar("YesNoPrompt", PreferencePrompt, RerankPrompt)
ADAPTER = "adapter"
"""Folder of the student's own LoRA matrices, inside its own."""
N_PROBES = 4
"""Prompts that a reloaded student is asked again."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A student on disk."""

    path: Path
    """Its folder: `LocalLM.load(..., prompt=path)` reads it."""
    adapter: Path | None
    """The adapter that it needs: the teacher's, or its own."""
    prompt: Prompt
    """Ask with this one: it writes the content alone (`prefix-kv`: the worded prompt)."""
    evidence: Mapping[str, Any]
    """KL and (yes/no) the order of prompts before and after, see `agreement`; tokens, seconds, versions."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is taught to whom."""

    prompt: Prompt
    queries: Callable[[LocalLM, Prompt], tuple[list[Query], list[Query]]]
    """Queries of training and of validation prompts, as a model reads them under a prompt."""
    groups: tuple[Sequence[int], Sequence[int]]
    content: Any
    """JSON-ready: all that the result depends on, beside the teacher and the options."""


def distil_yes_no(
    teacher: LocalLM,
    prompt: YesNoPrompt,
    rows: Callable[[YesNoPrompt], Sequence[TrainingRow]],
    out: Path,
    *,
    options: DistilOptions | None = None,
    validation: Callable[[YesNoPrompt], Sequence[TrainingRow]] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Distil a yes/no prompt; labels are not looked at.

    Args:
        teacher: The model that answers well under the worded prompt, adapter included; left as it is.
        prompt: The worded prompt.
        rows: Writes the training rows with a prompt: it is called with the worded one and the learned one.
        out: The student's folder; a killed call with the same arguments goes on where it was.
        options: How to distil.
        validation: Writes the rows that choose the epoch; default: the last epoch is kept.
        cache: Where the teacher's answers are kept for other calls; default: not beyond this one.
        progress: Is told of the steps.

    Raises:
        ConfigError: If the options do not fit.
        DataError: If there are no rows, or one is too long.
        ModelError: If the model cannot learn it, or the saved student answers otherwise.
    """
    sets = (list(rows(prompt)), [] if validation is None else list(validation(prompt)))

    def queries(lm: LocalLM, written: Any) -> tuple[list[Query], list[Query]]:
        found = sets if written == prompt else (rows(written), validation(written) if validation else ())
        first, second = (yes_no_queries(lm, part, prompt.answers) if part else [] for part in found)
        return first, second

    job = _Job(
        prompt=prompt,
        queries=queries,
        groups=([row.group for row in sets[0]], [row.group for row in sets[1]]),
        content=[[asdict(row) for row in part] for part in sets],
    )
    return _distil(teacher, job, Path(out), options or DistilOptions(), cache, progress)


def distil_titles(
    teacher: LocalLM,
    prompt: NextTitlePrompt,
    rows: Sequence[TitleRow],
    out: Path,
    *,
    options: DistilOptions | None = None,
    validation: Sequence[TitleRow] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Distil a next-title prompt; see `distil_yes_no`.

    The teacher's distributions are learned after every token of a row's title, its end included.

    Args:
        teacher: See `distil_yes_no`.
        prompt: The worded prompt.
        rows: Histories and titles.
        out: See `distil_yes_no`.
        options: How to distil; `over` and `ranking` are about yes/no.
        validation: Rows that choose the epoch.
        cache: See `distil_yes_no`.
        progress: Is told of the steps.
    """
    options = options or DistilOptions()
    if options.over != "vocabulary" or options.ranking:
        raise ConfigError("distillation: titles are learned over the vocabulary; leave over and ranking out.")
    sets = (list(rows), list(validation))

    def queries(lm: LocalLM, written: Any) -> tuple[list[Query], list[Query]]:
        first, second = (title_queries(lm, written, part) for part in sets)
        return first, second

    job = _Job(
        prompt=prompt,
        queries=queries,
        groups=(range(len(sets[0])), range(len(sets[1]))),
        content=[[[list(shown), title] for shown, title in part] for part in sets],
    )
    return _distil(teacher, job, Path(out), options, cache, progress)


def _distil(
    teacher: LocalLM,
    job: _Job,
    out: Path,
    options: DistilOptions,
    cache: Path | None,
    progress: Progress | None,
) -> Distilled:
    require("peft", "llm")
    from frugalrec.distillation.saving import finished, save
    from frugalrec.distillation.teacher import taught
    from frugalrec.tuning.adapt import prepared, versions
    from frugalrec.tuning.reload import fresh_copy
    from frugalrec.tuning.spent import Spent

    if job.prompt.learned is not None:
        raise ConfigError("the prompt is a learned one already; distil the worded prompt.")
    spent = Spent()
    said = [teacher.fingerprint, type(job.prompt).__name__, asdict(job.prompt), asdict(options)]
    key = hashlib.sha256(json.dumps([*said, job.content, versions()]).encode()).hexdigest()
    if (found := finished(out, key, teacher)) is not None:
        return found
    checkpoints = prepared(out, key)
    spent.resume(checkpoints)
    student = fresh_copy(teacher, teacher.adapter)
    worded = job.queries(student, job.prompt)
    check_lengths(worded[0], options.max_tokens)
    every = [*worded[0], *worded[1]]
    table = taught(student, every, options.over, cache or checkpoints, teacher.fingerprint)
    cached = 0 if student.is_encoder_decoder else len(beginning(student, job.prompt, every))
    groups = start(student, job.prompt, every, options)
    prompt = job.prompt if options.mode == "prefix-kv" else replace(job.prompt, learned=options.learned)
    learned = job.queries(student, prompt)
    items = lessons(worded[0], learned[0], job.groups[0])
    judged = lessons(worded[1], learned[1], job.groups[1], first=sum(len(q.positions) for q in worded[0]))
    task = _task(student, table, options)
    before = _agreement(task, student, prompt, judged or items, "before")
    outcome = _trained(student, task, items, judged, groups, options, checkpoints, progress, spent)
    evidence = {
        **before,
        **_agreement(task, student, prompt, judged or items, "after"),
        **_tokens(student, cached, prompt, every, [*learned[0], *learned[1]]),
        **outcome,
        "rows": len(worded[0]),
        "validation_rows": len(worded[1]),
        "positions_taught": sum(item.asked for item in items),
        "tokens_taught": sum(len(query.tokens) + len(query.decoder) for query in every),
        "tokens_trained": options.epochs * sum(map(task.length, items)),
        "trained_parameters": sum(p.numel() for p in student.network.parameters() if p.requires_grad),
        "teacher_adapter": None if teacher.adapter is None else str(Path(teacher.adapter).resolve()),
        "options": asdict(options),
        "versions": versions(),
    }
    probes = learned[0][:N_PROBES]
    found = save(student, teacher, out, key, prompt, evidence, worded[0][:N_PROBES], probes, spent.read)
    shutil.rmtree(checkpoints)
    return found


def _task(student: LocalLM, table: Table, options: DistilOptions) -> DistilTask:
    from frugalrec.distillation.learning import DistilTask
    from frugalrec.llm.scoring import CausalScorer
    from frugalrec.tuning.lora import compute_dtype

    scorer = CausalScorer(student.network, pad=student.pad_id, max_batch_tokens=student.max_batch_tokens)
    return DistilTask(
        table,
        answers_only=options.over == "answers",
        packed=not student.is_encoder_decoder and scorer.shares_exactly(),
        ranking=options.ranking,
        dtype=compute_dtype(student.network),
        pad=student.pad_id,
    )


def _trained(
    student: LocalLM,
    task: DistilTask,
    items: Sequence[Lesson],
    judged: Sequence[Lesson],
    groups: Sequence[Mapping[str, Any]],
    options: DistilOptions,
    checkpoints: Path,
    progress: Progress | None,
    spent: Any,
) -> dict[str, Any]:
    from frugalrec.tuning.training import train

    n_rows = sum(len(item.queries) for item in items)
    return train(
        student.network,
        task,
        items,
        judged,
        checkpoints,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        items_per_batch=max(1, options.batch_size * len(items) // n_rows),
        seed=options.seed,
        progress=progress,
        saved=lambda: spent.keep(checkpoints),
        groups=groups,
    )


def _agreement(
    task: DistilTask, student: LocalLM, prompt: Prompt, items: Sequence[Lesson], when: str
) -> dict[str, float | None]:
    """Return the divergence from the teacher and, of yes/no prompts, how far their order agrees."""
    from frugalrec.distillation.agreement import divergence, order

    found: dict[str, float | None] = {f"kl_{when}": divergence(task, student, items)}
    if not isinstance(prompt, NextTitlePrompt):
        found[f"order_{when}"] = order(task, student, items)
    return found


def _tokens(
    student: LocalLM, cached: int, prompt: Prompt, worded: Sequence[Query], learned: Sequence[Query]
) -> dict[str, float]:
    """Return mean tokens a prompt, read whole and behind a cached beginning that all prompts share.

    What a prefix of keys and values stands for is never read.
    """
    long, short = (float(np.mean([len(query.tokens) for query in part])) for part in (worded, learned))
    own = 0 if student.known or student.is_encoder_decoder else len(beginning(student, prompt, learned))
    return {
        "tokens_worded": long,
        "tokens_worded_cached": long - cached,
        "tokens_learned": short,
        "tokens_learned_cached": short - own,
    }
