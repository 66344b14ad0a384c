"""What the report shows of the allocation: who gets the LLM, and what other rules would have been worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from frugalrec.reporting import words
from frugalrec.reporting.document import Report
from frugalrec.reporting.facts import AllocationFacts, PolicyFacts
from frugalrec.reporting.judge import best_arm, difference
from frugalrec.reporting.plots import Plot, both
from frugalrec.reporting.svg import COLOURS, blank
from frugalrec.reporting.tables import Cell, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES: dict[str, tuple[str, object]] = {
    "gain-per-cost": ("fusion", "-"),
    "uncertainty": ("llm", "-"),
    "weak-quantile": ("llm", (0, (5, 1.5))),
    "fewest-interactions": ("cheap", (0, (5, 1.5, 1, 1.5))),
    "random": ("control", (0, (1, 1.2))),
    "oracle": ("muted", (0, (5, 3))),
}
"""Colour and line of rules that are drawn alike in every report."""


def allocation_facts(report: Report) -> list[tuple[str, str]]:
    """Return who gets the LLM and why, as pairs of title and value."""
    facts = report.allocation or {}
    metric = words.metric_name(facts.get("metric", report.primary))
    pairs = [
        ("Policy", words.clean(facts.get("policy", words.DASH))),
        ("Budget", words.clean(facts.get("budget", words.DASH))),
        ("Users routed", _of(facts.get("routed"), facts.get("users"))),
        ("Estimated cost", _spent(facts)),
        ("Calibration users", words.count(facts.get("calibration_users"))),
        (f"Gain on them, {metric}", _interval(facts.get("effect"))),
        ("Cheap lists, and their candidates in the best order", _headroom(facts.get("headroom"))),
        ("Users with a right item among the candidates", words.percent(facts.get("reachable"))),
        ("Expected against measured gain, rank correlation", _interval(facts.get("foresight"), 2)),
        (f"LLM cost of +0.01 {metric}, per 1,000 users", _price_of_gain(report) if facts else words.DASH),
    ]
    return [pair for pair in pairs if words.DASH != pair[1]]


def policy_table(report: Report) -> Table | None:
    """Return what each rule for routing would have been worth on users known from both sides."""
    facts = report.allocation or {}
    policies = facts.get("policies")
    if not policies:
        return None
    columns = (
        Column(title="Rule", numeric=False),
        Column(title="Mean gain", hint="over all budgets, from asking nobody to asking everybody"),
        Column(title="Gain recovered", hint="area under the curve; .5 is a random order, 1 costs nothing"),
        Column(title="Cost for 95 % of the gain"),
    )
    best = max((_area(policy) for policy in policies if not policy.get("oracle")), default=None)
    rows = []
    for policy in policies:
        share, recovered = policy.get("share_95"), policy.get("recovered")
        mean = Cell(
            text=words.signed(_area(policy)),
            note=_span(policy.get("area"), words.signed),
            sort=_area(policy),
            best=not policy.get("oracle") and _area(policy) == best,
        )
        part = Cell(
            text=words.fixed(recovered[0] if recovered else None, 3),
            note=_span(recovered, lambda value: words.fixed(value, 3)),
            sort=recovered[0] if recovered else None,
        )
        name = Cell(text=_name(policy["name"]), note="reads the answers" if policy.get("oracle") else "")
        rows.append(Row(cells=(name, mean, part, Cell(text=words.percent(share), sort=share))))
    caption = (
        f"Rules for who gets the LLM, judged on {words.count(facts.get('measured_users'))} test users drawn "
        f"at random, whose lists are known with and without it. Where no gain of asking for everybody is "
        f"proven, there are no shares of it."
    )
    return Table(key="policies", caption=caption, columns=columns, rows=tuple(rows))


def signal_table(report: Report) -> Table | None:
    """Return what the expected gain was read from."""
    signals = (report.allocation or {}).get("signals")
    if not signals:
        return None
    columns = (Column(title="Signal", numeric=False), Column(title="Gain per standard deviation"))
    rows = tuple(
        Row(cells=(Cell(text=_name(str(name))), Cell(text=words.signed(value), sort=value)))
        for name, value in signals
    )
    caption = "What the expected gain of a user is read from; no signal needs the user's answers."
    return Table(key="signals", caption=caption, columns=columns, rows=rows)


def group_table(report: Report) -> Table | None:
    """Return how many users of each activity group were routed."""
    groups = (report.allocation or {}).get("groups")
    if not groups:
        return None
    titles = ("Users", "Routed", "Share", "Expected gain")
    columns = (Column(title="Interactions", numeric=False), *(Column(title=title) for title in titles))
    rows = []
    for i, group in enumerate(groups):
        share = group["routed"] / group["users"] if group["users"] else None
        expected = group.get("expected")
        cells = (
            Cell(text=words.clean(group["label"]), sort=float(i)),
            Cell(text=words.count(group["users"]), sort=float(group["users"])),
            Cell(text=words.count(group["routed"]), sort=float(group["routed"])),
            Cell(text=words.percent(share), sort=share),
            Cell(text=words.signed(expected), sort=expected),
        )
        rows.append(Row(cells=cells))
    caption = "Who was routed, by how active users are, least active first."
    return Table(key="routed", caption=caption, columns=columns, rows=tuple(rows))


def policy_curves(report: Report) -> Plot | None:
    """Draw the metric against the share of the cost, one line a rule."""
    facts = report.allocation or {}
    policies = [policy for policy in facts.get("policies", []) if len(policy.get("curve", [])) > 1]
    if not policies:
        return None
    name = words.metric_name(facts.get("metric", report.primary))
    listed = words.listing([_name(policy["name"]) for policy in policies])
    description = (
        f"{name} against the share of the cost that is spent on the LLM, for the rules {listed}. A rule is "
        f"worth something where its line lies above the random one."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        for policy in policies:
            colour, line = _STYLES.get(policy["name"], ("cheap", "-"))
            axes.plot(
                [100 * share for share, _ in policy["curve"]],
                [value for _, value in policy["curve"]],
                color=COLOURS[colour],
                linestyle=line,
                linewidth=2.4 if policy["name"] == facts.get("policy") else 1.3,
                label=words.shorten(_name(policy["name"]), 26),
            )
        axes.margins(x=0.02)
        axes.set_xlabel("Share of the cost of asking for everybody, %")
        axes.set_title(name, loc="left", fontsize=11, color=COLOURS["muted"])
        columns = 2 if width < 500 else 4
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=10, handlelength=2.4)
        return figure

    return both("policy-curves", f"{name} by share of the cost", description, draw, (320, 380))


def place_table(report: Report) -> Table | None:
    """Return where candidates stand in the answer, by where they stood in the prompt."""
    places = (report.allocation or {}).get("places")
    if not places:
        return None
    columns = (Column(title="Place in the prompt", numeric=False), Column(title="Mean place in the answer"))
    rows = tuple(
        Row(cells=(Cell(text=str(place), sort=float(place)), Cell(text=words.fixed(mean, 2), sort=mean)))
        for place, mean in enumerate(places, start=1)
    )
    caption = "0 is the first place of the answer, 1 the last. The order shown is random: .5 means no bias."
    return Table(key="places", caption=caption, columns=columns, rows=rows)


def place_bias(report: Report) -> Plot | None:
    """Draw the mean place in the answer by the place in the prompt: flat without position bias."""
    places = (report.allocation or {}).get("places")
    known = [(n, mean) for n, mean in enumerate(places or (), start=1) if mean is not None]
    if len(known) < 2:
        return None
    spread = max(mean for _, mean in known) - min(mean for _, mean in known)
    description = (
        f"Mean place in the model's answer by place in the prompt, over candidates in random order. Means "
        f"differ by {words.fixed(spread, 2)}; the dashed line is a model that does not look at places."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs, ys = [n for n, _ in known], [mean for _, mean in known]
        axes.plot(xs, ys, color=COLOURS["llm"], marker="s", markersize=4.5, linewidth=1.4)
        axes.axhline(0.5, color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (5, 3)))
        axes.set_ylim(0, 1)
        axes.set_xlabel("Place in the prompt")
        axes.set_title(
            "Mean place in the answer (0 first, 1 last)", loc="left", fontsize=11, color=COLOURS["muted"]
        )
        return figure

    return both("places-plot", "Position bias", description, draw, (240, 240), wide=540)


def _price_of_gain(report: Report) -> str:
    """Return what the best fusion costs for each hundredth that it gains, if it surely gains."""
    arm = best_arm(report, ("fusion",))
    gain = None if arm is None else difference(report, arm)
    if arm is None or gain is None or gain.low <= 0:
        return "no gain is proven"
    hundredths = gain.mean / 0.01
    if words.defined(arm.cost.money_per_1000_users):
        money = (arm.cost.money_per_1000_users or 0.0) / hundredths
        dated = f" (prices of {report.prices_as_of})" if report.prices_as_of else ""
        return f"{words.short(money)} {words.clean(report.currency or '')}{dated}"
    if words.defined(arm.cost.tokens_per_user):
        return f"{words.count(1000 * (arm.cost.tokens_per_user or 0.0) / hundredths)} tokens"
    return words.DASH


def _name(name: str) -> str:
    plain = words.clean(name).replace("-", " ").replace("_", " ")
    return plain[:1].upper() + plain[1:]


def _area(policy: PolicyFacts) -> float:
    return policy.get("area", [float("-inf")])[0]


def _span(values: Sequence[float] | None, text: Callable[[float], str]) -> str:
    """Return an interval's ends, or nothing where they are unknown."""
    if not values or not words.defined(values[1]):
        return ""
    return f"{text(values[1])} to {text(values[2])}"


def _of(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return words.count(part)
    return f"{words.count(part)} of {words.count(whole)} ({words.percent(part / whole)})"


def _spent(facts: AllocationFacts) -> str:
    if facts.get("spent") is None or facts.get("whole") is None:
        return words.DASH
    unit = words.clean(facts.get("unit", ""))
    return f"{words.short(facts['spent'])} of {words.short(facts['whole'])} {unit} for everybody".strip()


def _interval(values: Sequence[float] | None, digits: int = 4) -> str:
    if not values or not words.defined(values[0]):
        return words.DASH
    mean, low, high = (words.signed(value, digits) for value in values)
    return f"{mean} ({low} to {high})"


def _headroom(values: Sequence[float] | None) -> str:
    if not values or not words.defined(values[0]):
        return words.DASH
    return " and ".join(words.fixed(value) for value in values)
