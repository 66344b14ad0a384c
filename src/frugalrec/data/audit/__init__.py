"""The leak audit: everything about a data set and its split that would make numbers lie.

Error-level findings stop a run until they are allowed by name; warnings and infos are shown. The
audit runs before any training:

    report = audit(dataset, split(dataset))
    report.enforce(allow=["id-order"])
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from frugalrec.data.audit import checks, folds, ids, titles
from frugalrec.data.audit.view import Finding, Severity, View
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import TEST, TRAIN, VALID, Split
from frugalrec.errors import ConfigError, LeakError

__all__ = ["CHECKS", "AuditReport", "Finding", "Severity", "audit"]

CHECKS: Mapping[str, Callable[[View], Finding | None]] = {
    "id-order": ids.id_order,
    "sorted-sequences": ids.sorted_sequences,
    "future-training": folds.future_training,
    "not-global-time": folds.not_global_time,
    "duplicate-interactions": checks.duplicate_interactions,
    "repeated-interactions": checks.repeated_interactions,
    "repeated-targets": folds.repeated_targets,
    "cold-items": folds.cold_items,
    "cold-users": folds.cold_users,
    "single-event-users": folds.single_event_users,
    "tiny-fold": folds.tiny_fold,
    "implausible-times": checks.implausible_times,
    "tied-times": checks.tied_times,
    "popularity-skew": checks.popularity_skew,
    "missing-titles": titles.missing_titles,
    "placeholder-titles": titles.placeholder_titles,
    "duplicate-titles": titles.duplicate_titles,
    "mojibake": titles.mojibake,
    "html-entities": titles.html_entities,
    "very-long-titles": titles.very_long_titles,
    "separator-titles": titles.separator_titles,
}
"""Every check by the name of its finding; a new check is one more line."""

_RANK: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class AuditReport:
    """What the audit found, errors first."""

    dataset: str
    """Name of the data set."""
    findings: tuple[Finding, ...]

    def errors(self, allow: Collection[str] = ()) -> tuple[Finding, ...]:
        """Return the error-level findings that are not allowed by name."""
        return tuple(f for f in self.findings if f.severity == "error" and f.name not in allow)

    def enforce(self, allow: Collection[str] = ()) -> None:
        """Stop here if there is an error-level finding that is not allowed by name.

        Args:
            allow: Names of checks whose errors are accepted knowingly.

        Raises:
            LeakError: Naming every such finding, its figures, the remedy and how to allow it.
            ConfigError: If `allow` holds a name that no check has.
        """
        unknown = sorted(set(allow) - set(CHECKS))
        if unknown:
            raise ConfigError(
                f"no audit check is called {', '.join(map(repr, unknown))}; known: {', '.join(CHECKS)}."
            )
        errors = self.errors(allow)
        if errors:
            plural = "error" if len(errors) == 1 else "errors"
            raise LeakError(
                "\n".join([f"{self.dataset}: the audit found {len(errors)} {plural}.", *map(_line, errors)])
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        findings = [{**asdict(finding), "examples": list(finding.examples)} for finding in self.findings]
        return {"dataset": self.dataset, "findings": findings}


def audit(dataset: Dataset, split: Split | None = None) -> AuditReport:
    """Run every check.

    Args:
        dataset: The data set, before any split.
        split: A split of it; without one, the publisher's folds are used where the data carry
            them, else the checks on folds are silent. The id checks take each user's last item as
            target in any case.

    Returns:
        The findings, errors first, then warnings, then infos; in the order of `CHECKS` inside.
    """
    view = View(dataset=dataset, split=split or _published(dataset))
    found = [finding for check in CHECKS.values() if (finding := check(view)) is not None]
    return AuditReport(dataset.name, tuple(sorted(found, key=lambda finding: _RANK[finding.severity])))


def _published(dataset: Dataset) -> Split | None:
    # Not `split(dataset, "given")`: an empty fold is for the checks to report, not a reason to stop.
    if dataset.folds is None:
        return None
    train, valid, test = (dataset.where(dataset.folds == fold) for fold in (TRAIN, VALID, TEST))
    return Split(method="given", train=train, valid=valid, test=test)


def _line(finding: Finding) -> str:
    return (
        f"- {finding.name}: {finding.message} Remedy: {finding.remedy} "
        f"To go on knowingly: --allow {finding.name}"
    )
