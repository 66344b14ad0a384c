"""Where training rows come from: a prompt file, a data set, or what a finished run selected."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from frugalrec.config import DataConfig, RunConfig
from frugalrec.data.examples import Examples, examples
from frugalrec.data.likes import chains
from frugalrec.data.readers.tallrec import PointwiseRows, read_prompts
from frugalrec.data.splits import Split, split
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.questions import known_titles
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt, Style
from frugalrec.llm.prompts import has_text
from frugalrec.rng import generator
from frugalrec.runs import Run
from frugalrec.stages import cheap, data, llm, selection
from frugalrec.stages.artefacts import load_json
from frugalrec.tuning.base import TitleRow, TrainingRow
from frugalrec.tuning.rows import few_shots, title_rows

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

YES_NO_SHOTS, TITLE_SHOTS = 64, 1024
"""Rows to tune on where none are asked for."""
NOUN = re.compile(r'Whether the user will like the target (\w+) \\"')


@dataclass(frozen=True, kw_only=True)
class YesNoRows:
    """Questions to tune on, and how they were written."""

    rows: list[TrainingRow]
    validation: list[TrainingRow]
    answers: tuple[str, str]
    prompt: dict[str, Any]
    """The prompt's fields: ask with the same ones at inference."""


@dataclass(frozen=True, kw_only=True)
class TitleRows:
    """Histories and next titles to tune on, and how they will be written."""

    rows: list[TitleRow]
    validation: list[TitleRow]
    prompt: NextTitlePrompt


def from_prompts(
    lm: LocalLM,
    path: Path,
    *,
    shots: int | None,
    balanced: bool,
    validation: Path | None,
    validation_rows: int | None,
    style: Style,
    noun: str,
    seed: int,
) -> YesNoRows:
    """Draw yes/no rows from a prompt file; validation rows come from another file or from the rest.

    Rows cut from one user's history overlap: the answers that validation asks for stand in the histories
    of their neighbours, and would be trained. So no row of the rest shares its chain with a drawn one.
    """
    from frugalrec.llm.prompts import chat_frame

    table = read_prompts(path)
    wanted = min(YES_NO_SHOTS, len(table)) if shots is None else shots
    drawn = few_shots(table.labels, wanted, seed=seed, balanced=balanced)
    of = chains(table)
    others = table.take(np.flatnonzero(~np.isin(of, of[drawn])))
    if validation is not None:
        others = read_prompts(validation)
        validation_rows = len(others) if validation_rows is None else validation_rows
    validation_rows = validation_rows or 0
    if validation is None and validation_rows > len(others):
        raise DataError(
            f"{path} holds {len(others)} rows of histories that none of the {wanted} shots belongs to, fewer "
            f"than the {validation_rows} validation rows asked for: lower --validation-rows, draw fewer "
            "shots, or give rows of other users by --validation FILE."
        )
    if noun == "auto":
        found = NOUN.search(path.read_text(encoding="utf-8", errors="replace")[:20_000])
        noun = found[1] if found else "item"
    framed = {"frame": chat_frame(lm.tokenizer)} if style == "chat" else {}
    prompt = PreferencePrompt(noun=noun, style=style, **framed)  # type: ignore[arg-type]
    return YesNoRows(
        rows=_asked(prompt, table.take(drawn)),
        validation=_asked(prompt, others.take(_some(len(others), validation_rows, seed))),
        answers=prompt.answers,
        prompt=asdict(prompt),
    )


def _asked(prompt: PreferencePrompt, table: PointwiseRows) -> list[TrainingRow]:
    rows = []
    for number, parts in enumerate(
        zip(table.liked, table.disliked, table.targets, table.labels, strict=True)
    ):
        question = prompt.ask(*parts[:3])
        row = TrainingRow(prompt=question.text, label=bool(parts[3]), group=number, known=question.known)
        rows.append(row)
    return rows


def _some(n: int, wanted: int, seed: int) -> Any:
    if wanted > n:
        raise DataError(f"cannot draw {wanted} validation rows from {n}; lower --validation-rows.")
    return generator(seed, "validation-rows").permutation(n)[:wanted]


def from_dataset(
    config: DataConfig, *, shots: int | None, validation_rows: int, window: int, noun: str, seed: int
) -> TitleRows:
    """Draw rows history -> title from the train fold, and validation rows from the valid fold."""
    dataset = data.open_dataset(config, seed)
    folds = split(dataset, config.split, valid=config.valid, test=config.test)
    titles = known_titles(None, dataset)
    rows = title_rows(examples(folds.train, window=window), titles)
    wanted = min(TITLE_SHOTS, len(rows)) if shots is None else shots
    if not 1 <= wanted <= len(rows):
        raise DataError(
            f"cannot draw {wanted} shots from {len(rows)} users with a history and a titled item after it."
        )
    drawn = generator(seed, "few-shots").permutation(len(rows))[:wanted]
    if noun == "auto":
        noun = next((noun for mark, noun in data.NOUNS.items() if mark in dataset.name.lower()), "item")
    return TitleRows(
        rows=[rows[row] for row in drawn],
        validation=_held_out(folds, titles, window, validation_rows, seed),
        prompt=NextTitlePrompt(noun=noun, window=window),
    )


def _held_out(folds: Split, titles: Sequence[str], window: int, wanted: int, seed: int) -> list[TitleRow]:
    """Return rows whose title is the first that a user chose in the valid fold."""
    history, later = folds.history("valid"), folds.targets("valid")
    rows: list[TitleRow] = []
    for user in folds.users("valid") if wanted else ():
        target = int(later.history(int(user))[0])
        shown = [titles[item] for item in history.history(int(user))[-window:]]
        if has_text(titles[target]):
            rows.append(([title for title in shown if has_text(title)], titles[target]))
    return [rows[row] for row in _some(len(rows), wanted, seed)]


def run_config(folder: Path) -> RunConfig:
    """Return the configuration that a finished run was computed with."""
    return RunConfig.model_validate(yaml.safe_load(load_json(folder / "report.json")["config_yaml"]))


def from_run(folder: Path, task: str, *, shots: int | None, validation_rows: int) -> YesNoRows | TitleRows:
    """Return the rows that a finished run selected, as its own tuning would see them (or as titles).

    Args:
        folder: The run's folder.
        task: `yes-no` or `next-title`.
        shots: Only the first so many; default: all.
        validation_rows: Rows of the valid fold, for `next-title`.
    """
    config = run_config(folder)
    with Run(folder) as run:
        prepared = data.prepare(run, config)
        samples = selection.select_samples(run, config, prepared)
        kept: Examples = samples.candidates.take(samples.selection.kept[:shots])
        noun, window, titles = (
            data.noun_of(config, prepared.dataset),
            config.selection.window,
            known_titles(None, prepared.dataset),
        )
        if task == "next-title":
            return TitleRows(
                rows=title_rows(kept, titles),
                validation=_held_out(prepared.split, titles, window, validation_rows, config.seed),
                prompt=NextTitlePrompt(noun=noun, window=window),
            )
        if validation_rows:
            raise ConfigError(
                "yes/no rows of a run have no validation rows: its valid fold chooses the fusion weight. "
                "Leave --validation-rows out."
            )
        prompt = llm.prompt_for(config, prepared.dataset)
        rows = llm.training_rows(config, prepared, cheap.first_stage(run, config, prepared), kept)
        return YesNoRows(rows=rows, validation=[], answers=prompt.answers, prompt=asdict(prompt))
