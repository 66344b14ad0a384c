"""The smaller tables: activity groups, cold and warm, stages, samples, weights, and the key figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from frugalrec.reporting import words
from frugalrec.reporting.document import Arm, Report
from frugalrec.reporting.facts import Finding
from frugalrec.reporting.judge import LLM_KINDS, best_arm, difference
from frugalrec.reporting.tables import Cell, Column, Row, Table, interval_cell

LOSS_ROWS = 25
"""The most rows that a printed loss curve has."""


def key_figures(report: Report) -> list[tuple[str, str, str]]:
    """Return the three or four figures a reader remembers: title, value, and what it stands beside."""
    figures = []
    llm, reference = best_arm(report, LLM_KINDS), report.arm(report.reference)
    if llm is not None:
        found = difference(report, llm)
        if found is not None:
            ends = f"{words.signed(found.low)} to {words.signed(found.high)}"
            figures.append(
                (f"{words.metric_name(report.primary)}, difference", words.signed(found.mean), ends)
            )
        if llm.cost.ms_per_user is not None:
            beside = f"reference: {words.short(reference.cost.ms_per_user)}"
            figures.append(("Milliseconds per user", words.short(llm.cost.ms_per_user), beside))
        if llm.cost.tokens_per_user is not None:
            free = 0.0 if reference.kind in ("cheap", "control") else None  # no LLM, no tokens
            tokens = reference.cost.tokens_per_user
            beside = f"reference: {words.short(free if tokens is None else tokens)}"
            figures.append(("LLM tokens per user", words.short(llm.cost.tokens_per_user), beside))
    selection = report.selection or {}
    if selection.get("candidates"):
        share = words.percent(selection.get("kept", 0) / selection["candidates"])
        figures.append(
            (
                "Samples used",
                share,
                f"{words.count(selection.get('kept'))} of {words.count(selection['candidates'])}",
            )
        )
    return figures


def tuning_facts(report: Report) -> list[tuple[str, str]]:
    """Return how the LLM was tuned, as pairs of title and value."""
    facts = report.tuning or {}
    pairs = [
        ("Base model", words.clean(facts.get("base", words.DASH))),
        ("Samples", words.count(facts.get("samples"))),
        ("Epochs", words.plain(facts.get("epochs"))),
        ("Samples per second", words.short(facts.get("samples_per_s"))),
        ("Adapter SHA-256", words.clean(facts.get("adapter_sha256", words.DASH))),
    ]
    return [pair for pair in pairs if pair[1] != words.DASH]


def dataset_facts(report: Report) -> list[tuple[str, str]]:
    """Return what the data set is, as pairs of title and value."""
    facts = report.dataset
    pairs = [
        ("Data set", words.clean(facts.get("name", words.DASH))),
        ("Users", words.count(facts.get("users"))),
        ("Items", words.count(facts.get("items"))),
        ("Interactions", words.count(facts.get("interactions"))),
        ("Density", words.percent(facts.get("density"))),
        ("Time span", words.clean(facts.get("span", words.DASH))),
        ("Split", words.clean(facts.get("split", words.DASH))),
        ("Training rows", words.count(facts.get("train"))),
        ("Validation rows", words.count(facts.get("valid"))),
        ("Test rows", words.count(facts.get("test"))),
    ]
    return [pair for pair in pairs if pair[1] != words.DASH]


def findings(report: Report) -> list[Finding]:
    """Return the audit's findings, errors first, then warnings, otherwise in the given order."""
    order = {"error": 0, "warning": 1}
    return sorted(report.audit, key=lambda finding: order.get(finding.get("severity", ""), 2))


def decile_table(report: Report) -> Table | None:
    """Return the metric of each arm in each activity group."""
    deciles = report.deciles
    if deciles is None:
        return None
    columns = [Column(title="Interactions", numeric=False), Column(title="Users")]
    columns += [Column(title=words.clean(report.arm(name).label)) for name in deciles.arms]
    rows = []
    for i, label in enumerate(deciles.labels):
        cells = [Cell(text=words.clean(label), sort=float(i)), _count_cell(deciles.users[i])]
        means = [row[i].mean for row in deciles.arms.values() if words.defined(row[i].mean)]
        top = max(means, default=None)
        cells += [interval_cell(row[i], best=row[i].mean == top) for row in deciles.arms.values()]
        rows.append(Row(cells=tuple(cells)))
    name = words.metric_name(deciles.metric)
    caption = f"{name} by how active users are, least active first. ★ marks the best of a row."
    return Table(key="deciles", caption=caption, columns=tuple(columns), rows=tuple(rows))


def warmth_table(report: Report) -> Table | None:
    """Return the primary metric on cold and on warm targets."""
    if not report.warmth:
        return None
    titles = ("Cold targets", "Cold", "Warm targets", "Warm")
    columns = (Column(title="Arm", numeric=False), *(Column(title=title) for title in titles))
    rows = []
    for row in report.warmth:
        arm = report.arm(row.arm)
        cells = (
            _name_cell(arm),
            _count_cell(row.cold_targets),
            interval_cell(row.cold),
            _count_cell(row.warm_targets),
            interval_cell(row.warm),
        )
        rows.append(Row(cells=cells, kind=arm.kind))
    name = words.metric_name(report.primary)
    caption = f"{name} where the true item was seen in training (warm) and where it was not (cold)."
    return Table(key="warmth", caption=caption, columns=columns, rows=tuple(rows))


def stage_table(report: Report) -> Table | None:
    """Return what every stage spent, and the sum."""
    if not report.stages:
        return None
    money = any(words.defined(stage.money) for stage in report.stages)
    numbers: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("Wall time", "wall_s", words.duration),
        ("CPU time", "cpu_s", words.duration),
        ("Peak memory", "peak_memory_bytes", words.memory),
        ("LLM calls", "llm_calls", words.count),
        ("Tokens in", "tokens_in", words.count),
        ("Cached", "tokens_cached", words.count),
        ("Tokens out", "tokens_out", words.count),
        ("Trained", "tokens_trained", words.count),
    ]
    if money:
        numbers.append((report.currency or "Money", "money", words.short))
    columns = (Column(title="Stage", numeric=False), *(Column(title=title) for title, _, _ in numbers))
    rows = []
    for stage in report.stages:
        cells = [
            Cell(
                text=words.clean(stage.name),
                note="reused" if stage.reused else "",
                sort=words.clean(stage.name),
            )
        ]
        cells += [Cell(text=show(getattr(stage, key)), sort=getattr(stage, key)) for _, key, show in numbers]
        rows.append(Row(cells=tuple(cells)))
    cells = [Cell(text="Total")]
    cells += [
        Cell(text=show(_total([getattr(s, key) for s in report.stages], key))) for _, key, show in numbers
    ]
    rows.append(Row(cells=tuple(cells), mark="total"))
    caption = "A reused stage shows what the run that made it spent. The total of memory is the peak."
    return Table(key="stages", caption=caption, columns=columns, rows=tuple(rows))


def pairs_table(key: str, caption: str, titles: tuple[str, str], pairs: Sequence[Sequence[float]]) -> Table:
    """Return two columns of numbers, such as a loss curve."""
    columns = (Column(title=titles[0], numeric=False), Column(title=titles[1]))
    rows = tuple(
        Row(cells=(Cell(text=words.plain(x), sort=x), Cell(text=words.fixed(y), sort=y))) for x, y in pairs
    )
    return Table(key=key, caption=caption, columns=columns, rows=rows)


def weight_table(report: Report) -> Table | None:
    """Return the grid from which the fusion weight was chosen."""
    weights = report.weights
    if not weights or not weights.get("grid"):
        return None
    metric = words.metric_name(weights.get("metric", report.primary))
    chosen = weights.get("chosen")
    table = pairs_table(
        "weights",
        f"Weights tried on validation users. {words.plain(chosen)} was chosen; test users played no part.",
        ("Weight", f"{metric}, validation"),
        weights["grid"],
    )
    rows = []
    for (weight, _), row in zip(weights["grid"], table.rows, strict=True):
        if weight == chosen:
            first = replace(row.cells[0], note="chosen")
            row = replace(row, cells=(first, *row.cells[1:]), mark="chosen")
        rows.append(row)
    return replace(table, rows=tuple(rows))


def _name_cell(arm: Arm) -> Cell:
    label = words.clean(arm.label)
    return Cell(text=label, note=words.kind_name(arm.kind), sort=label)


def _count_cell(value: float | None) -> Cell:
    return Cell(text=words.count(value), sort=value)


def _total(values: Sequence[float | None], key: str) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None  # a sum over unknown prices would be too small
    return max(known) if key == "peak_memory_bytes" else sum(known)


def finding_amount(finding: Finding) -> str:
    """Return how often a finding occurs, such as ``1,022 times, 0.2 %``."""
    parts = [f"{words.count(finding['count'])} found"] if finding.get("count") is not None else []
    parts += [words.percent(finding["share"])] if words.defined(finding.get("share")) else []
    return ", ".join(parts)


def loss_table(report: Report) -> Table | None:
    """Return the loss curve as a table of at most `LOSS_ROWS` rows, the first and the last included."""
    curve = (report.tuning or {}).get("loss")
    if not curve:
        return None
    last = len(curve) - 1
    kept = sorted({round(i * last / (LOSS_ROWS - 1)) for i in range(LOSS_ROWS)})
    caption = "Training loss by step."
    if len(kept) < len(curve):
        caption = f"Training loss at {len(kept)} of {len(curve)} recorded steps; report.json holds them all."
    return pairs_table("loss", caption, ("Step", "Loss"), [curve[i] for i in kept])


def provenance(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return versions, seeds and hashes under their titles."""
    groups = (("Versions", report.versions), ("Seeds", report.seeds), ("Hashes", report.hashes))
    return [(title, [(key, str(value)) for key, value in pairs.items()]) for title, pairs in groups if pairs]
