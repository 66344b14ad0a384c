"""The verdict: what the numbers prove, in plain sentences, headline first.

No sentence claims a gain without its interval. An LLM arm gets credit only if its paired difference
excludes zero, no cheap model does as well, and no control "gains" as much.
"""

from __future__ import annotations

from collections.abc import Iterable

from frugalrec.reporting.document import Arm, Difference, Report
from frugalrec.reporting.words import (
    count,
    defined,
    duration,
    fixed,
    level,
    listing,
    metric_name,
    short,
    signed,
)

LLM_KINDS = ("llm", "fusion")


def verdict(report: Report) -> tuple[str, ...]:
    """Return what the report proves: one headline, then its evidence, one sentence or two each."""
    cheap, llm = best_arm(report, ("cheap",)), best_arm(report, LLM_KINDS)
    sentences = [_headline(report, cheap, llm)]
    if llm is not None:
        sentences += [_evidence(report, llm), _costs(report, llm), _several(report, llm)]
    sentences += [_cheapest(report, cheap), _controls(report)]
    broken = sum(1 for finding in report.audit if finding.get("severity") == "error")
    if broken:
        sentences.insert(
            0,
            f"Do not act on these numbers: the audit found {broken} error-level problem{'s' * (broken > 1)}.",
        )
    return tuple(sentence for sentence in sentences if sentence)


def best_arm(report: Report, kinds: Iterable[str]) -> Arm | None:
    """Return the arm of these kinds with the largest primary metric; oracles never count.

    The reference stands for the cheap side, so it is no candidate among the LLM arms.
    """
    kinds = tuple(kinds)
    candidates = [
        arm
        for arm in report.arms
        if arm.kind in kinds
        and not arm.oracle
        and defined(primary(report, arm))
        and not (arm.name == report.reference and "cheap" not in kinds)
    ]
    return max(candidates, key=lambda arm: arm.metrics[report.primary].mean, default=None)


def primary(report: Report, arm: Arm) -> float | None:
    """Return the mean of the primary metric, or ``None`` if the arm has none."""
    interval = arm.metrics.get(report.primary)
    return None if interval is None else interval.mean


def difference(report: Report, arm: Arm) -> Difference | None:
    """Return the paired difference in the primary metric, if it is known with both ends."""
    found = (arm.difference or {}).get(report.primary)
    return found if found is not None and found.known else None


def spurious_controls(report: Report) -> list[Arm]:
    """Return the controls whose own paired difference lies wholly above zero."""
    controls = [
        (arm, difference(report, arm)) for arm in report.arms if arm.kind == "control" and not arm.oracle
    ]
    return [arm for arm, found in controls if found is not None and found.low > 0]


def _headline(report: Report, cheap: Arm | None, llm: Arm | None) -> str:
    """Return the one sentence that a hurried reader takes away."""
    keep = f"keep the cheap model, {cheap.label}" if cheap else "there is no cheap model to fall back on"
    if llm is None:
        return f"No LLM was put to the test: {keep}."
    found = difference(report, llm)
    if found is None:
        return f"No proven gain: {llm.label} was not compared with the reference; {keep}."
    if found.high < 0:
        return f"The LLM makes it worse: {keep}."
    if found.low <= 0:
        return f"No proven gain: {keep}."
    rivals = [arm for arm in spurious_controls(report) if _mean_difference(report, arm) >= found.mean]
    if rivals:
        return f"No proven gain from the LLM: the control {rivals[0].label} gains as much; {keep}."
    if cheap is not None and cheap.name != report.reference:
        ours, theirs = llm.metrics[report.primary].mean, cheap.metrics[report.primary].mean
        if theirs >= ours:
            return f"No proven gain: the cheap model {cheap.label} does as well without an LLM; keep it."
        if theirs > (primary(report, report.arm(report.reference)) or 0.0):
            return (
                f"{llm.label} beats {report.arm(report.reference).label}, but a gain over the best "
                f"cheap model, {cheap.label}, is not proven."
            )
    return f"{llm.label} beats {report.arm(report.reference).label}."


def _mean_difference(report: Report, arm: Arm) -> float:
    found = difference(report, arm)
    return float("-inf") if found is None else found.mean


def _evidence(report: Report, llm: Arm) -> str:
    """Return the size of the difference, with its interval."""
    base, name = report.arm(report.reference), metric_name(report.primary)
    ours, theirs = llm.metrics[report.primary].mean, primary(report, base)
    text = f"{llm.label} reaches {name} {fixed(ours)}; {base.label} reaches {fixed(theirs)}."
    found = difference(report, llm)
    if found is None:
        return f"{text} Their paired difference is not known, so nothing can be said about a gain."
    relative = f", {signed(found.mean / theirs * 100, 1)} % of the reference" if theirs else ""
    excludes = "includes" if found.low <= 0 <= found.high else "excludes"
    return (
        f"{text} The paired difference over {count(llm.users)} users is {signed(found.mean)}{relative}; its "
        f"{level(report.confidence)} interval, {signed(found.low)} to {signed(found.high)}, {excludes} zero."
    )


def _costs(report: Report, llm: Arm) -> str:
    """Return what the LLM arm costs beyond the reference."""
    ours, base = llm.cost, report.arm(report.reference).cost
    per_user = []
    if ours.ms_per_user is not None:
        extra = f" (reference: {short(base.ms_per_user)} ms)" if base.ms_per_user is not None else ""
        per_user.append(f"{short(ours.ms_per_user)} ms{extra}")
    if ours.tokens_per_user is not None:
        per_user.append(f"{short(ours.tokens_per_user)} LLM tokens")
    if not per_user:
        return f"What {llm.label} costs per user was not measured."
    text = f"It costs {' and '.join(per_user)} per user"
    if ours.money_per_1000_users is not None:
        dated = f", at prices of {report.prices_as_of}" if report.prices_as_of else ""
        text += (
            f", or {short(ours.money_per_1000_users)} {report.currency or ''}".rstrip()
            + f" per 1,000 users{dated}"
        )
    if ours.fit_s is not None:
        text += f"; fitting takes {duration(ours.fit_s)} once"
        text += f" (reference: {duration(base.fit_s)})" if base.fit_s is not None else ""
    return text + "."


def _several(report: Report, llm: Arm) -> str:
    """Return a warning if the best of several LLM arms was picked on the users that score it."""
    arms = [a for a in report.arms if a.kind in LLM_KINDS and not a.oracle and a.name != report.reference]
    if len(arms) < 2:
        return ""
    proven = [a for a in arms if (found := difference(report, a)) is not None and found.low > 0]
    which = f": {listing([a.label for a in proven])}" if proven else ""
    return (
        f"{llm.label} is the best of {len(arms)} LLM arms on the same users, and its interval is not "
        f"corrected for that choice; {len(proven)} of {len(arms)} show a gain whose interval excludes "
        f"zero{which}."
    )


def _cheapest(report: Report, cheap: Arm | None) -> str:
    """Return the best cheap arm with its interval."""
    if cheap is None:
        return "No cheap model was run, so nothing says whether an LLM is needed at all."
    value = cheap.metrics[report.primary]
    role = "which is also the reference" if cheap.name == report.reference else "which is not the reference"
    return (
        f"The best cheap model is {cheap.label}, {role}: {metric_name(report.primary)} {fixed(value.mean)} "
        f"({level(report.confidence)} interval {fixed(value.low)} to {fixed(value.high)})."
    )


def _controls(report: Report) -> str:
    """Return whether controls, which cannot help, seem to help."""
    controls = [arm for arm in report.arms if arm.kind == "control" and not arm.oracle]
    if not controls:
        return "No control was run, so part of any gain may come from something other than the model."
    spurious = spurious_controls(report)
    compared = [arm for arm in controls if difference(report, arm) is not None]
    if not compared:
        return f"The controls ({listing([a.label for a in controls])}) were not compared with the reference."
    if not spurious:
        return (
            f"No control gains over the reference ({listing([_with_interval(report, a) for a in compared])})."
        )
    return (
        f"A control also gains: {listing([_with_interval(report, a) for a in spurious])}. "
        f"A gain of that size needs no LLM."
    )


def _with_interval(report: Report, arm: Arm) -> str:
    found = difference(report, arm)
    if found is None:
        return arm.label
    return f"{arm.label} {signed(found.mean)}, interval {signed(found.low)} to {signed(found.high)}"
