"""What the report says of the selection: what was kept and why, and its cost against tuning on everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import polars as pl

from frugalrec.config import RunConfig
from frugalrec.ledger import Usage
from frugalrec.reporting.facts import Lengths, PartCost, SelectionCost, SelectionFacts
from frugalrec.selection import scorer_class
from frugalrec.stages.artefacts import load_json
from frugalrec.stages.selection import Samples

KEPT, LEFT_OUT = 5, 4
"""Rows of the report's table: the highest scores that were kept, and both ends of those left out."""


def selection_facts(
    config: RunConfig, samples: Samples, tuning: Usage | None, evidence: Mapping[str, Any]
) -> SelectionFacts:
    """Return what the selection stage and the ledger know of the choice.

    Args:
        config: The run's configuration.
        samples: The candidates, and which were kept.
        tuning: What the tuning stage spent; None where nothing was tuned.
        evidence: What the tuner measured: `samples_per_second`, `rows`, and its `config`.
    """
    chosen, about = samples.selection, _artefact(samples, "diagnostics.json")
    prefers = scorer_class(chosen.scorer).prefers
    known = ["undefined", "kept_undefined", "negative_influence_kept", "negative_influence_all"]
    known += ["deciles"] if prefers else []  # where a score means nothing, neither do its tenths
    facts: dict[str, Any] = {name: about[name] for name in known if name in about}
    facts |= _rows(samples, ordered=bool(prefers))
    facts |= {
        "scorer": chosen.scorer,
        "prefers": prefers,
        "options": dict(config.selection.options),
        "budget": chosen.budget,
        "candidates": len(samples.candidates),
        "kept": int(chosen.kept.size),
        "seed": chosen.seed,
        "lengths": _lengths(samples),
        "cost": _cost(samples, tuning, evidence),
    }
    return cast(SelectionFacts, facts)


def _rows(samples: Samples, *, ordered: bool) -> dict[str, Any]:
    """Return the highest-scoring kept rows, and the highest and lowest ones that were left out."""
    path = samples.stage.path / "selection.parquet"
    if not path.is_file():  # as in `_artefact`
        return {}
    table = pl.read_parquet(path)
    names = [name for name in ("influence", "effort", "score") if name in table.columns]
    shown = table.select(
        "kept", pl.col("title").alias("target"), "history", *(pl.col(name).fill_nan(None) for name in names)
    ).sort("score", "target", descending=[True, False], nulls_last=True)
    shown = shown if ordered else shown.drop("score")
    kept, rest = shown.filter("kept").drop("kept"), shown.filter(~pl.col("kept")).drop("kept")
    if ordered:
        rest = rest.filter(pl.col("score").is_not_null())
    ends = (
        rest if rest.height <= LEFT_OUT else pl.concat([rest.head(LEFT_OUT // 2), rest.tail(LEFT_OUT // 2)])
    )
    return {"examples": kept.head(KEPT).to_dicts(), "left_out": ends.to_dicts()}


def _lengths(samples: Samples) -> Lengths:
    lengths = np.diff(samples.candidates.indptr)
    edges = np.arange(lengths.min(), lengths.max() + 2)
    return Lengths(
        edges=edges.tolist(),
        all=np.histogram(lengths, edges)[0].tolist(),
        kept=np.histogram(lengths[samples.selection.kept], edges)[0].tolist(),
    )


def _cost(samples: Samples, tuning: Usage | None, evidence: Mapping[str, Any]) -> SelectionCost:
    """Return what choosing and tuning cost, part by part, and what tuning on all rows would."""
    scored = {name: Usage.from_dict(cost) for name, cost in _artefact(samples, "costs.json").items()}
    parts = [_part(name, usage) for name, usage in scored.items()]
    # Choosing itself and, where the stage was killed on its way, what the earlier attempts took.
    stage, known = _part("selection", samples.stage.usage), _sum(parts)
    rest_s, rest = max(0.0, stage["wall_s"] - known["wall_s"]), stage["tokens"] - known["tokens"]
    parts.append(PartCost(name="rest" if parts else "choosing", wall_s=rest_s, tokens=rest))
    if tuning is None:
        return SelectionCost(parts=parts, together=_sum(parts))
    parts.append(_part("tuning", tuning))
    kept, further = samples.selection.kept.size, len(samples.candidates) - samples.selection.kept.size
    one = PartCost(
        name="one", wall_s=_seconds_a_sample(tuning, evidence, kept), tokens=tuning.tokens_trained / kept
    )
    # Loading and checking are paid once, however many samples there are.
    full = PartCost(
        name="full",
        wall_s=tuning.wall_s + further * one["wall_s"],
        tokens=tuning.tokens_trained + further * one["tokens"],
    )
    together = _sum(parts)
    return SelectionCost(
        parts=parts,
        together=together,
        further=one,
        full=full,
        time_ratio=together["wall_s"] / full["wall_s"],
        token_ratio=together["tokens"] / full["tokens"],
    )


def _seconds_a_sample(tuning: Usage, evidence: Mapping[str, Any], kept: int) -> float:
    """Return what tuning took for one kept sample: its rows, in all epochs, at the measured rate."""
    rate = float(evidence["samples_per_second"])
    if rate <= 0:  # tuning was killed after its last step, and measured nothing since
        return tuning.wall_s / kept
    return float(evidence["config"]["epochs"] * evidence["rows"] / rate / kept)


def _part(name: str, usage: Usage) -> PartCost:
    tokens = usage.tokens_in + usage.tokens_out + usage.tokens_trained
    return PartCost(name=name, wall_s=usage.wall_s, tokens=tokens)


def _sum(parts: list[PartCost]) -> PartCost:
    return PartCost(
        name="together",
        wall_s=sum(part["wall_s"] for part in parts),
        tokens=sum(part["tokens"] for part in parts),
    )


def _artefact(samples: Samples, name: str) -> dict[str, Any]:
    """Return a JSON artefact of the stage; a stage of an earlier version may lack it."""
    path = samples.stage.path / name
    return dict(load_json(path)) if path.is_file() else {}
