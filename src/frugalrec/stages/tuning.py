"""Tuning outside a run: one adapter, after an optional first stage on general instructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_type_hints

from frugalrec.config import DataConfig
from frugalrec.errors import ConfigError
from frugalrec.ledger import measure
from frugalrec.llm.preferences import Style
from frugalrec.rng import generator
from frugalrec.runs import Observer, Stage
from frugalrec.stages.artefacts import save_json
from frugalrec.stages.tuning_rows import (
    TitleRows,
    YesNoRows,
    from_dataset,
    from_prompts,
    from_run,
    run_config,
)
from frugalrec.tuning.base import Tuner
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
from frugalrec.tuning.options import TuningOptions
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner
from frugalrec.types import Adapter

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

Task = Literal["yes-no", "next-title"]
CONFIGS: Mapping[str, type[TuningOptions]] = {"yes-no": PointwiseConfig, "next-title": GenerativeConfig}
"""Task -> the options of its tuner."""
MODEL, WINDOW = "smollm2-135m", 10
FIRST = "instruct."
"""What fields of the first stage begin with."""
MATRICES = ("rank", "alpha", "method", "target_modules", "layers")
"""Fields that say where matrices are and what they mean: the second stage goes on with those of the first."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What `frugalrec tune` is asked for."""

    source: str
    """A prompt file (yes-no), a data set (next-title), or the folder of a finished run (both)."""
    task: Task
    out: Path
    """The adapter's folder."""
    model: str | None = None
    """Default: the model of the run whose folder is the source; else `MODEL`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    shots: int | None = None
    """Rows to tune on; default: 64 (yes-no), 1,024 (next-title), or all that a run selected."""
    balanced: bool = False
    """As many Yes as No; else rows as they come."""
    validation: str | None = None
    """A prompt file that validation rows come from; default: what is left of the source."""
    validation_rows: int | None = None
    """Rows that choose among the epochs; default: all of `validation`, or none: the last epoch."""
    instruct: str | None = None
    """A file of general instructions for a first stage."""
    instruct_rows: int | None = None
    """So many of them, drawn at random; default: all."""
    style: Style | None = None
    """How yes/no prompts are written; default: `rated`."""
    noun: str | None = None
    """What one item is; default: guessed from the source."""
    window: int | None = None
    """History titles shown, for next-title; default: `WINDOW`."""
    data: DataConfig = field(default_factory=DataConfig)
    """How a data set is read."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the tuner's options; those of the first stage begin with ``instruct.``."""
    report_to: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read."""
        if self.task not in CONFIGS:
            raise ConfigError(f"unknown task {self.task!r}; choose one of {', '.join(CONFIGS)}.")
        for name, least in (("shots", 1), ("validation_rows", 0), ("window", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}.")
        if self.task == "next-title" and (self.balanced or self.validation is not None):
            raise ConfigError("--balanced and --validation are about yes/no rows; leave them out.")
        if self.validation is not None and self.validation_rows == 0:
            raise ConfigError("--validation-rows 0 uses no row of --validation FILE; leave one of them out.")
        if self.instruct is None and any(name.startswith(FIRST) for name in self.settings):
            raise ConfigError(
                "fields that begin with instruct. are about a first stage; give --instruct FILE."
            )
        self._check_unused()

    @property
    def is_run(self) -> bool:
        """Whether the source is the folder of a finished run."""
        return (Path(self.source) / "report.json").is_file()

    def _check_unused(self) -> None:
        """Refuse options that this source or task would not look at."""
        given = [
            name
            for name in ("style", "noun", "window", "balanced", "validation")
            if getattr(self, name) not in (None, False)
        ]
        if self.is_run and given:
            raise ConfigError(
                f"{self.source} is a finished run, whose rows are written as the run wrote them: "
                f"--{given[0]} would change nothing; leave it out."
            )
        if self.task == "yes-no" and self.window is not None:
            raise ConfigError(
                "--window is about next-title; a yes/no row shows all its titles. Leave it out."
            )
        if self.task == "next-title" and self.style is not None and self.instruct is None:
            raise ConfigError("--style is about yes/no prompts and the first stage; leave it out.")
        if self.instruct is None and self.instruct_rows is not None:
            raise ConfigError("--instruct-rows draws from a file of instructions; give --instruct FILE.")


def tune_adapter(request: TuneRequest, observer: Observer | None = None) -> dict[str, Any]:
    """Tune one adapter; the same call after a kill goes on where the killed one was.

    Args:
        request: What to tune on, and how.
        observer: Is told of the steps.

    Returns:
        The facts: path, hash, rows, losses, speed; also written to ``tune.json`` in the folder.

    Raises:
        ConfigError: If an option makes no sense.
        DataError: If the source holds too few rows.
        ModelError: If the model cannot be tuned, or the adapter does not pass its checks.
    """
    from frugalrec.tuning.instructions import read_instructions
    from frugalrec.tuning.processes import is_main, join

    watcher = observer or Observer()
    config = _config(request, first=False)
    if request.instruct is not None:
        _check_stages(_config(request, first=True), config)
    texts = None if request.instruct is None else read_instructions(request.instruct)
    join()
    base = _base(request, config)
    rows = _rows(request, base)
    first = None
    if texts is not None:
        first = _instructed(request, base, texts, watcher)
        config = dataclasses.replace(config, start=str(first.path))
    with _watched(watcher, "tuning", request.out) as progress:
        adapter = _tuner(rows, config).tune(base, rows.rows, rows.validation, request.out, progress=progress)
    facts = _facts(rows, adapter, first)
    if is_main():
        save_json(request.out / "tune.json", facts)
    return facts


def _config(request: TuneRequest, *, first: bool) -> TuningOptions:
    """Return the options of a stage; those of both that the matrices depend on are the same."""
    kind = TuningOptions if first else CONFIGS[request.task]
    own = {k: v for k, v in request.settings.items() if not k.startswith(FIRST)}
    if first:
        shared = (*MATRICES, "dropout", "gradient_checkpointing")
        own = {name: own[name] for name in shared if name in own} | {
            name.removeprefix(FIRST): value
            for name, value in request.settings.items()
            if name.startswith(FIRST)
        }
    known = {entry.name for entry in dataclasses.fields(kind)} - {"start", "seed", "report_to"}
    if unknown := sorted(set(own) - known):
        raise ConfigError(f"tuning has no field {unknown[0]!r}; choose from {', '.join(sorted(known))}.")
    given = {name: _value(kind, name, value) for name, value in own.items()}
    return kind(**given, seed=request.seed, report_to=request.report_to)


def _value(kind: type[TuningOptions], name: str, value: Any) -> Any:
    """Return a setting as its field wants it: YAML knows no tuples, and reads 5e-4 as a text."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and get_type_hints(kind)[name] is float:
        with suppress(ValueError):  # what is no number is told by the options themselves
            return float(value)
    return value


def _check_stages(first: TuningOptions, second: TuningOptions) -> None:
    """Refuse a first stage whose matrices the second cannot go on with."""
    for name in MATRICES:
        wanted, found = getattr(second, name), getattr(first, name)
        if found != wanted:
            raise ConfigError(
                f"the second stage starts from the matrices of the first, so {FIRST}{name} must be {wanted}, "
                f"not {found}; give {name}={found} for both, or leave {FIRST}{name} out."
            )


def _base(request: TuneRequest, config: TuningOptions) -> LocalLM:
    from frugalrec.llm.local import LocalLM

    # The 4-bit copy alone is put on the GPU.
    device = "cpu" if config.method == "qlora" else "auto"
    return LocalLM.load(_model(request), dtype=request.dtype, device=device)


def _model(request: TuneRequest) -> str:
    if request.model is not None or not request.is_run:
        return request.model or MODEL
    model = run_config(Path(request.source)).llm.model
    if model == "none":
        raise ConfigError(f"the run {request.source} used no LLM; say which one to tune with --llm.")
    return model


def _rows(request: TuneRequest, base: LocalLM) -> YesNoRows | TitleRows:
    source, noun = Path(request.source), request.noun or "auto"
    if request.is_run:
        return from_run(
            source, request.task, shots=request.shots, validation_rows=request.validation_rows or 0
        )
    if request.task == "yes-no":
        return from_prompts(
            base,
            source,
            shots=request.shots,
            balanced=request.balanced,
            validation=None if request.validation is None else Path(request.validation),
            validation_rows=request.validation_rows,
            style=request.style or "rated",
            noun=noun,
            seed=request.seed,
        )
    return from_dataset(
        request.data,
        shots=request.shots,
        validation_rows=request.validation_rows or 0,
        window=request.window or WINDOW,
        noun=noun,
        seed=request.seed,
    )


def _tuner(rows: YesNoRows | TitleRows, config: TuningOptions) -> Tuner:
    if isinstance(rows, YesNoRows):
        return PointwiseTuner(cast(PointwiseConfig, config), answers=rows.answers)
    return GenerativeTuner(cast(GenerativeConfig, config), prompt=rows.prompt)


def _instructed(request: TuneRequest, base: LocalLM, texts: list[Any], watcher: Observer) -> Adapter:
    """Tune on general instructions, in a folder of its own below the adapter's."""
    from frugalrec.llm.prompts import chat_frame
    from frugalrec.tuning.instructions import InstructionTuner

    wanted = request.instruct_rows
    if wanted is not None:
        if not 1 <= wanted <= len(texts):
            raise ConfigError(f"cannot draw {wanted} of {len(texts)} instructions; choose 1 to {len(texts)}.")
        drawn = generator(request.seed, "instructions").permutation(len(texts))[:wanted]
        texts = [texts[row] for row in drawn]
    frame = chat_frame(base.tokenizer) if request.style == "chat" else None
    tuner = InstructionTuner(_config(request, first=True), frame=frame)
    out = request.out / "instruct"
    with _watched(watcher, "instructions", out) as progress:
        return tuner.tune(base, texts, None, out, progress=progress)


@contextmanager
def _watched(watcher: Observer, name: str, path: Path) -> Iterator[Callable[[int, int], None]]:
    watcher.started(name)
    with measure() as meter:
        yield lambda done, total: watcher.progressed(name, done, total)
    watcher.finished(Stage(name=name, path=path, hash="", usage=meter.usage, reused=False))


def _facts(rows: YesNoRows | TitleRows, adapter: Adapter, first: Adapter | None) -> dict[str, Any]:
    evidence = adapter.evidence
    names = ("rows", "validation_rows", "best_epoch", "validation", "trainable_parameters", "tokens_trained")
    return {
        "adapter": str(adapter.path),
        "sha256": adapter.sha256,
        "base": adapter.base,
        "prompt": rows.prompt if isinstance(rows, YesNoRows) else asdict(rows.prompt),
        **{name: evidence[name] for name in (*names, "tokens_validated", "samples_per_second", "seconds")},
        "first_loss": evidence["loss_curve"][0][1],
        "last_loss": evidence["loss_curve"][-1][1],
        "first_stage": None if first is None else {"adapter": str(first.path), "sha256": first.sha256},
    }
