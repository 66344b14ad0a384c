"""Distillation outside a run: a tuned prompt in words becomes learned vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from frugalrec.config import DataConfig
from frugalrec.data.readers.tallrec import PointwiseRows, read_prompts
from frugalrec.distillation.options import DistilOptions
from frugalrec.distillation.saving import KINDS
from frugalrec.distillation.student import Distilled, distil_titles, distil_yes_no
from frugalrec.distillation.wording import Prompt
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import measure
from frugalrec.llm.adapters import CONFIG
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.rng import generator
from frugalrec.runs import Observer, Run, Stage
from frugalrec.stages import cheap, data, llm, selection
from frugalrec.stages.artefacts import load_json, save_json
from frugalrec.stages.tuning_rows import from_dataset, run_config
from frugalrec.tuning.base import TrainingRow

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

PROMPTS = 128
"""Prompts to learn from where no number is asked for."""
RANKS = 0.5
"""Rank correlation with its teacher below which a student is said not to rank."""
CHEAP = 0.05
"""Words behind a prompt cache count as cheap where vectors save less than this share of a prompt more."""
Writer = Callable[[Any], Sequence[TrainingRow]]


@dataclass(frozen=True, kw_only=True)
class DistilRequest:
    """What `frugalrec distil` is asked for."""

    source: Path
    """The folder of a finished run, or of an adapter that `frugalrec tune` wrote."""
    out: Path
    """The student's folder."""
    data: DataConfig | None = None
    """Where an adapter's prompts come from: what it was tuned on, or anything alike."""
    model: str | None = None
    """The base model; default: what the source names."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    prompts: int = PROMPTS
    """Prompts to learn from, about: a run's come in groups of a sample and its negatives."""
    validation_prompts: int = PROMPTS // 4
    """Prompts that choose among the epochs."""
    vectors: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of `DistilOptions`."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read."""
        if self.prompts < 1 or self.validation_prompts < 0:
            raise ConfigError(
                f"--prompts must be at least 1 and --validation-prompts at least 0, not {self.prompts} and "
                f"{self.validation_prompts}."
            )
        if self.is_run and self.data is not None:
            raise ConfigError(f"{self.source} is a run, which has data of its own; leave --data out.")
        if not self.is_run and not (self.source / CONFIG).is_file():
            raise ConfigError(f"{self.source} is neither a finished run nor an adapter; give one of both.")
        if not self.is_run and self.data is None:
            raise ConfigError("an adapter does not hold its data; name it, or data alike, with --data.")

    @property
    def is_run(self) -> bool:
        """Whether the source is the folder of a finished run."""
        return (self.source / "report.json").is_file()

    @property
    def options(self) -> DistilOptions:
        """The options of distillation."""
        known = {entry.name for entry in dataclasses.fields(DistilOptions)} - {"n_vectors", "seed"}
        if unknown := sorted(set(self.settings) - known):
            raise ConfigError(
                f"distillation has no field {unknown[0]!r}; choose from {', '.join(sorted(known))}."
            )
        try:
            return DistilOptions(n_vectors=self.vectors, seed=self.seed, **self.settings)
        except TypeError as error:  # such as a text where a number is compared
            raise ConfigError(f"distillation: a --set value is of the wrong kind ({error}).") from None


def distil_source(request: DistilRequest, observer: Observer | None = None) -> dict[str, Any]:
    """Distil the tuned prompt of a run or an adapter; the same call after a kill goes on.

    Args:
        request: What to distil, and how.
        observer: Is told of the steps.

    Returns:
        The facts: KL before and after, tokens, a verdict; also written to ``distil.json``.
    """
    watcher, options = observer or Observer(), request.options
    watcher.started("distillation")
    with measure() as meter:
        distil = _of_run if request.is_run else _of_adapter
        found = distil(request, options, lambda done, total: watcher.progressed("distillation", done, total))
    stage = Stage(name="distillation", path=request.out, hash="", usage=meter.usage, reused=False)
    watcher.finished(stage)
    facts = _facts(found)
    save_json(request.out / "distil.json", facts)
    return facts


def _of_run(request: DistilRequest, options: DistilOptions, progress: Any) -> Distilled:
    config = run_config(request.source)
    if config.llm.model == "none" and request.model is None:
        raise ConfigError(f"the run {request.source} used no LLM, so that it has no prompt to distil.")
    with Run(request.source) as run:
        prepared = data.prepare(run, config)
        samples = selection.select_samples(run, config, prepared)
        first = cheap.first_stage(run, config, prepared)
        each = 1 + config.tuning.negatives
        wanted = [-(-n // each) for n in (request.prompts, request.validation_prompts)]
        rest = generator(request.seed, "distillation").permutation(len(samples.candidates))
        kept = samples.selection.kept
        order = np.concatenate([kept, rest[~np.isin(rest, kept)]])
        taken = order[: wanted[0]], order[wanted[0] : sum(wanted)]

        def rows(part: Any) -> Writer:
            chosen = samples.candidates.take(part)
            return lambda prompt: llm.training_rows(config, prepared, first, chosen, prompt)

        adapter = request.source / "tuning" / "adapter"
        return distil_yes_no(
            _loaded(request, config.llm.model, adapter if adapter.is_dir() else None),
            llm.prompt_for(config, prepared.dataset),
            rows(taken[0]),
            request.out,
            options=options,
            validation=rows(taken[1]) if len(taken[1]) else None,
            progress=progress,
        )


def _of_adapter(request: DistilRequest, options: DistilOptions, progress: Any) -> Distilled:
    assert request.data is not None  # noqa: S101 - checked by the request
    prompt = prompt_of(request.source)
    if isinstance(prompt, RerankPrompt):
        raise ConfigError(
            f"the adapter {request.source} was tuned on a run's prompts; distil that run instead."
        )
    teacher = _loaded(request, None, request.source)
    if isinstance(prompt, NextTitlePrompt):
        found = from_dataset(
            request.data,
            shots=request.prompts,
            validation_rows=request.validation_prompts,
            window=prompt.window,
            noun=prompt.noun,
            seed=request.seed,
        )
        return distil_titles(
            teacher,
            prompt,
            found.rows,
            request.out,
            options=options,
            validation=found.validation,
            progress=progress,
        )
    table = read_prompts(Path(str(request.data.source)))
    n, judged = request.prompts, request.validation_prompts
    if n + judged > len(table):
        raise DataError(
            f"{request.data.source} holds {len(table)} prompts, fewer than {n} to learn from and {judged} of "
            "validation; lower --prompts or --validation-prompts."
        )
    order = generator(request.seed, "distillation").permutation(len(table))
    return distil_yes_no(
        teacher,
        prompt,
        _writer(table.take(order[:n])),
        request.out,
        options=options,
        validation=_writer(table.take(order[n : n + judged])) if judged else None,
        progress=progress,
    )


def _writer(table: PointwiseRows) -> Writer:
    def write(prompt: PreferencePrompt) -> list[TrainingRow]:
        asked = [prompt.ask(*row) for row in zip(table.liked, table.disliked, table.targets, strict=True)]
        return [
            TrainingRow(prompt=question.text, label=bool(label), group=number, known=question.known)
            for number, (question, label) in enumerate(zip(asked, table.labels, strict=True))
        ]

    return write


def prompt_of(adapter: Path) -> Prompt:
    """Return the worded prompt that an adapter was tuned with.

    Raises:
        ConfigError: If `frugalrec tune` did not write it.
    """
    path = Path(adapter) / "tune.json"
    if not path.is_file():
        raise ConfigError(f"{adapter} has no tune.json that says how prompts are written; tune it again.")
    fields = load_json(path)["prompt"]
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for kind in KINDS.values():
        names = {entry.name for entry in dataclasses.fields(kind)}
        if set(own) | {"learned"} == names:
            found: Prompt = kind(**own)
            return found
    raise ConfigError(f"{path} describes no known prompt; tune the adapter again.")


def _loaded(request: DistilRequest, model: str | None, adapter: Path | None) -> LocalLM:
    from frugalrec.llm.local import LocalLM
    from frugalrec.tuning.integrity import base_of

    name = request.model or model
    if name is None:
        return base_of(request.source, request.dtype, adapter_on_top=True)
    return LocalLM.load(name, adapter=adapter, dtype=request.dtype)


def _facts(found: Distilled) -> dict[str, Any]:
    evidence = found.evidence
    names = (
        *("kl_before", "kl_after", "rows", "validation_rows", "best_epoch", "trained_parameters", "seconds"),
        *("tokens_worded", "tokens_learned", "tokens_worded_cached", "tokens_learned_cached"),
    )
    facts = {name: evidence[name] for name in names}
    facts |= {name: evidence.get(name) for name in ("order_before", "order_after")}
    return {
        "student": str(found.path),
        "adapter": None if found.adapter is None else str(found.adapter),
        "mode": evidence["options"]["mode"],
        "vectors": evidence["options"]["n_vectors"],
        **facts,
        "verdict": f"{kept_order(facts)}{verdict(facts)}",
    }


def kept_order(facts: Mapping[str, float | None]) -> str:
    """Say in words whether the student ranks as its teacher does.

    >>> kept_order({"order_before": 0.1, "order_after": 0.93, "validation_rows": 24})
    "Held-out prompts stand in the teacher's order to 0.93 (rank correlation; 0.10 before). "
    >>> "Do not rank" in kept_order({"order_before": 0.1, "order_after": 0.4, "validation_rows": 0})
    True
    >>> kept_order({"order_before": None, "order_after": None, "validation_rows": 24})
    ''
    """
    before, after = facts["order_before"], facts["order_after"]
    if after is None:
        return ""
    then = "unknown" if before is None else f"{before:.2f}"
    which = "Held-out prompts" if facts["validation_rows"] else "Its own training prompts"
    said = f"{which} stand in the teacher's order to {after:.2f} (rank correlation; {then} before). "
    if after >= RANKS:
        return said
    return (
        f"{said}Do not rank with this student: it has learned how often its teacher says yes, not to what. "
        "Give it more --prompts or epochs, or keep the words. "
    )


def verdict(facts: Mapping[str, float]) -> str:
    """Say in words what the vectors save, with a prompt cache and without.

    >>> verdict({"tokens_worded": 200, "tokens_learned": 120, "tokens_worded_cached": 121,
    ...          "tokens_learned_cached": 119})[-68:]
    'there a cached worded prompt is as cheap, and needs no distillation.'
    """
    long, short = facts["tokens_worded"], facts["tokens_learned"]
    cached = facts["tokens_worded_cached"], facts["tokens_learned_cached"]
    said = (
        f"A prompt has {short:.0f} tokens instead of {long:.0f} ({100 * (1 - short / long):.0f} % fewer). "
        f"Where what all prompts begin with is read once (a prompt cache), {cached[1]:.0f} instead of "
        f"{cached[0]:.0f} are left"
    )
    if cached[0] - cached[1] < CHEAP * long:
        return f"{said}: there a cached worded prompt is as cheap, and needs no distillation."
    return f"{said}, {100 * (1 - cached[1] / cached[0]):.0f} % fewer."
