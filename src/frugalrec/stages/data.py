"""The data stage: read once, keep as arrays; then audit and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalrec.config import DataConfig, RunConfig
from frugalrec.data import audit as auditing
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import Split, split
from frugalrec.errors import DataError
from frugalrec.ledger import Meter
from frugalrec.runs import Run, file_hash
from frugalrec.stages.artefacts import load_json, save_json

FILM_CLUB = "film-club"
NOUNS = {"film": "film", "movie": "film", "ml-": "film", "book": "book", "game": "game"}
"""What the name of a data set says about its items, for prompts."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set that has been read, split and audited."""

    key: str
    """Hash of the data and of how they are split; enters the keys of all later stages."""
    dataset: Dataset
    split: Split
    audit: list[dict[str, Any]]
    """Findings as dictionaries, errors first."""


def prepare(run: Run, config: RunConfig) -> Prepared:
    """Read, split and audit the data; stop on an error-level leak that was not allowed.

    Raises:
        LeakError: If the audit finds a leak that `config.data.allow` does not name.
    """

    def build(folder: Path, meter: Meter) -> None:
        open_dataset(config.data, config.seed).save(folder)

    stage = run.stage("data", _source_key(config.data, config.seed), build)
    dataset = Dataset.load(stage.path)
    folds = split(dataset, config.data.split, valid=config.data.valid, test=config.data.test)

    def check(folder: Path, meter: Meter) -> None:
        save_json(folder / "audit.json", auditing.audit(dataset, folds).to_dict())

    key = {"data": stage.hash, **config.data.model_dump(include={"split", "valid", "test"})}
    audited = run.stage("audit", key, check)
    content = load_json(audited.path / "audit.json")
    findings = [{**row, "examples": tuple(row["examples"])} for row in content["findings"]]
    report = auditing.AuditReport(dataset.name, tuple(auditing.Finding(**row) for row in findings))
    report.enforce(config.data.allow)
    return Prepared(key=audited.hash, dataset=dataset, split=folds, audit=content["findings"])


def noun_of(config: RunConfig, dataset: Dataset) -> str:
    """Return what one item is called in prompts: as configured, or guessed from the data set's name."""
    if config.llm.noun != "auto":
        return config.llm.noun
    return next((noun for mark, noun in NOUNS.items() if mark in dataset.name.lower()), "item")


def open_dataset(config: DataConfig, seed: int) -> Dataset:
    """Read the data set that the configuration names, or simulate the film club."""
    if config.source == FILM_CLUB:
        from frugalrec.data.simulate import film_club

        return film_club(n_members=config.members, seed=seed)
    from frugalrec.data.readers import read

    return read(
        config.source,
        config.format,
        columns=config.columns or None,
        items=Path(config.items) if config.items else None,
        item_columns=config.item_columns or None,
        time_unit=config.time_unit,
        encoding=config.encoding,
        seed=seed,
    )


def _source_key(config: DataConfig, seed: int) -> dict[str, Any]:
    reading = config.model_dump(exclude={"split", "valid", "test", "allow"})
    if config.source == FILM_CLUB:
        return {"reading": reading, "seed": seed}
    path = Path(config.source)
    if not path.exists():
        raise DataError(
            f"there is no file or folder {config.source!r}. Give a path to your interactions, or "
            f"{FILM_CLUB} for the built-in data."
        )
    # Readers pick up item texts beside a single interactions file, so those enter the key too.
    beside = [] if path.is_dir() else sorted(path.parent.glob("items.*"))
    texts = [Path(config.items)] if config.items else beside
    hashes = [file_hash(text) for text in texts if text.is_file()]
    return {"reading": reading, "seed": seed, "content": file_hash(path), "items": hashes}
