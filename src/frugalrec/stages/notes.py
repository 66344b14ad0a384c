"""What limits a run's conclusions, in sentences: seeds, refits, who was asked, and who got no answer."""

from __future__ import annotations

from frugalrec.config import RunConfig
from frugalrec.stages.artefacts import load_json
from frugalrec.stages.asking import Served
from frugalrec.stages.data import Prepared
from frugalrec.stages.rivals import Rival, available

ANSWERED = ("answered", "cached")


def notes(
    config: RunConfig,
    data: Prepared,
    served: Served | None,
    rival: Rival | None,
    pointless: str | None = None,
) -> tuple[str, ...]:
    """Return what a reader of the report should bear in mind."""
    found = [
        f"One seed ({config.seed}): intervals are over users, not over seeds. "
        "Run three seeds or more before a claim.",
        "Item and user codes are a seeded random permutation; ids never enter a prompt.",
    ]
    if config.recommenders.refit:
        found.append(
            "Choices were made on validation with models fitted on train; "
            "for the test, models were fitted again on train and validation."
        )
    if served is not None:
        n, m = int(served.allocation.routed.sum()), served.allocation.users.size
        who = f"all {m}" if n == m else f"{n} of {m}"
        rest = "" if n == m else " The others keep the cheap list, in every LLM row and its controls."
        found.append(f"The LLM re-ranked {who} test users (policy {served.allocation.policy}).{rest}")
        found += failures(served)
    if pointless is not None:
        found.append(f"The LLM was asked nothing: {pointless}")
    if rival is None and config.recommenders.learning_to_rank:
        why = "too few validation lists hold a right item" if available() else "LightGBM is not installed"
        found.append(f"Boosted trees over the same candidates were left out: {why}.")
    if config.data.allow:
        found.append(f"Audit findings allowed by name: {', '.join(config.data.allow)}.")
    return tuple(found)


def failures(served: Served) -> list[str]:
    """Return, for each way to use the LLM, why routed users keep the cheap list after all, if any do."""
    notes = []
    for variant in served.variants.values():
        asked = load_json(variant.valid.path / "answers.json")
        for who, answers in (("routed", variant.answers), ("calibration", asked)):
            reasons = {k: n for k, n in answers.get("reasons", {}).items() if k not in ANSWERED}
            if reasons:
                told = ", ".join(f"{name} {n:,}" for name, n in sorted(reasons.items()))
                notes.append(
                    f"{sum(reasons.values()):,} of {answers['users']:,} {who} users keep the cheap list "
                    f"after all, and count as they are (LLM, {variant.name}: {told})."
                )
        notes += [f"LLM, {variant.name}: {text}" for text in variant.answers.get("cautions", ())]
    return notes
