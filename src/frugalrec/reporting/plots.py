"""The report's drawings: quality against cost, activity groups, loss, histories, cost by stage.

Every drawing exists twice, wide and narrow, so that its text stays readable on a phone, and every drawing
has a table with the same numbers. Kinds of arms differ in marker as well as in colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from frugalrec.reporting import words
from frugalrec.reporting.document import Arm, Interval, Report
from frugalrec.reporting.judge import LLM_KINDS, best_arm, primary
from frugalrec.reporting.labels import Box, place, spread
from frugalrec.reporting.svg import COLOURS, blank, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

MARKERS = {"cheap": "o", "llm": "s", "fusion": "D", "control": "X"}
_LINES = {"cheap": "-", "llm": (0, (5, 1.5)), "fusion": "-", "control": (0, (1, 1.2))}
_WIDE, _NARROW = 760, 340
_FEWEST_MS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One drawing, in both widths, with the words that stand beside it."""

    key: str
    title: str
    description: str
    wide: str
    """An ``<svg>`` element for screens of 700 px and more, and for print."""
    narrow: str
    """An ``<svg>`` element for phones."""


def quality_cost(report: Report) -> Plot | None:
    """Draw the primary metric with its interval against milliseconds per user, on a log scale."""
    arms = [arm for arm in report.arms if _can_place(report, arm)]
    if not arms:
        return None
    name = words.metric_name(report.primary)
    description = (
        f"{len(arms)} arms: {name} with its interval upwards, milliseconds per user to the right. "
        f"The stepped line joins the arms that beat every cheaper one."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        axes.set_xscale("log")
        frontier = _frontier(report, arms)
        if len(frontier) > 1:
            xs, ys = [_ms(arm) for arm in frontier], [_value(report, arm).mean for arm in frontier]
            axes.plot(xs, ys, drawstyle="steps-post", color=COLOURS["muted"], linewidth=0.9, zorder=1)
        for arm in arms:
            _draw_arm(axes, report, arm)
        axes.margins(x=0.16 if width < 500 else 0.1, y=0.1)
        axes.set_xlabel("Milliseconds per user, log scale")
        axes.set_title(name, loc="left", fontsize=11, color=COLOURS["muted"])
        axes.xaxis.set_major_formatter(lambda value, _: words.short(value))
        axes.minorticks_off()
        _label_arms(figure, axes, report, arms)
        return figure

    return _both("quality-cost", f"{name} against cost", description, draw, (430, 440))


def deciles(report: Report) -> Plot | None:
    """Draw the metric by activity group, for the reference and the best arm of each other kind."""
    table = report.deciles
    if table is None or not table.labels:
        return None
    shown = [arm for arm in _chosen_for_lines(report) if arm.name in table.arms]
    if not shown:
        return None
    name = words.metric_name(table.metric)
    description = (
        f"{name} of {words.listing([arm.label for arm in shown])} in {len(table.labels)} groups of users, "
        f"least active left; bands are intervals. The table below holds the numbers."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs = list(range(len(table.labels)))
        for arm in shown:
            row = table.arms[arm.name]
            colour = COLOURS[arm.kind]
            axes.fill_between(
                xs, [v.low for v in row], [v.high for v in row], color=colour, alpha=0.1, linewidth=0
            )
            means = [v.mean for v in row]
            axes.plot(
                xs, means, color=colour, linestyle=_LINES[arm.kind], marker=MARKERS[arm.kind], markersize=4.5
            )
        narrow = width < 500
        axes.set_xticks(xs, [words.clean(label) for label in table.labels], fontsize=8.5 if narrow else 10)
        if narrow:
            axes.tick_params(axis="x", rotation=60)
        axes.set_xlabel("Interactions of the user")
        axes.set_title(name, loc="left", fontsize=11, color=COLOURS["muted"])
        _label_ends(figure, axes, [(arm.label, table.arms[arm.name]) for arm in shown], inside=narrow)
        return figure

    return _both("deciles-plot", f"{name} by activity", description, draw, (340, 380))


def loss(report: Report) -> Plot | None:
    """Draw the training loss."""
    curve = [pair for pair in (report.tuning or {}).get("loss", []) if words.defined(pair[1])]
    if len(curve) < 2:
        return None
    first, last = words.fixed(curve[0][1], 3), words.fixed(curve[-1][1], 3)
    description = f"Training loss goes from {first} to {last} over {words.short(curve[-1][0])} steps."

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs, ys = [pair[0] for pair in curve], [pair[1] for pair in curve]
        axes.plot(xs, ys, color=COLOURS["llm"], linewidth=1.6)
        axes.set_ylim(bottom=min(0.0, *ys))
        axes.set_xlabel("Step")
        axes.set_title("Training loss", loc="left", fontsize=11, color=COLOURS["muted"])
        return figure

    return _both("loss-plot", "Training loss", description, draw, (220, 220))


def lengths(report: Report) -> Plot | None:
    """Draw the share of samples by history length, kept against all."""
    histogram = (report.selection or {}).get("lengths")
    if not histogram or not sum(histogram["all"]) or not sum(histogram["kept"]):
        return None
    edges = histogram["edges"]
    shares = [[part / sum(row) * 100 for part in row] for row in (histogram["all"], histogram["kept"])]
    description = (
        "Share of samples by history length: outlined bars are all samples, filled bars are the kept ones."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs = list(range(len(shares[0])))
        left, right = [x - 0.21 for x in xs], [x + 0.21 for x in xs]
        axes.bar(left, shares[0], 0.38, facecolor="none", edgecolor=COLOURS["control"], label="all samples")
        axes.bar(right, shares[1], 0.38, color=COLOURS["llm"], edgecolor=COLOURS["llm"], label="kept samples")
        spans = [
            f"{words.short(a)}–{words.short(b - 1)}" if b - a > 1 else words.short(a)
            for a, b in _pairs(edges)
        ]
        axes.set_xticks(xs, spans)
        axes.set_xlabel("History length")
        axes.set_title("Share of samples, %", loc="left", fontsize=11, color=COLOURS["muted"])
        axes.legend(frameon=False, fontsize=10)
        return figure

    return _both("lengths-plot", "History lengths of kept and of all samples", description, draw, (260, 260))


def stages(report: Report) -> Plot | None:
    """Draw wall time by stage."""
    if not report.stages or not any(stage.wall_s for stage in report.stages):
        return None
    longest = max(report.stages, key=lambda stage: stage.wall_s)
    description = (
        f"Wall time of {len(report.stages)} stages; the longest is {words.clean(longest.name)} with "
        f"{words.duration(longest.wall_s)}. Outlined bars were reused from an earlier run."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        rows = list(reversed(report.stages))
        for y, stage in enumerate(rows):
            colour = COLOURS["llm"] if stage.llm_calls or stage.tokens_trained else COLOURS["cheap"]
            face = "none" if stage.reused else colour
            axes.barh(y, stage.wall_s, 0.56, facecolor=face, edgecolor=colour, linewidth=1.1)
            text = words.duration(stage.wall_s) + (", reused" if stage.reused else "")
            axes.annotate(text, (stage.wall_s, y), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [words.clean(stage.name) for stage in rows], color=COLOURS["ink"])
        axes.set_xticks([])
        axes.margins(y=0.02)
        axes.set_xlim(0, longest.wall_s * (1.45 if width < 500 else 1.15))
        return figure

    height = 40 + 30 * len(report.stages)
    return _both("stages-plot", "Wall time by stage", description, draw, (height, height))


def _both(
    key: str, title: str, description: str, draw: Callable[[int, int], Figure], heights: tuple[int, int]
) -> Plot:
    """Draw in both widths."""
    drawings = []
    for css, width, height in (("wide", _WIDE, heights[0]), ("narrow", _NARROW, heights[1])):
        with style():
            figure = draw(width, height)
            drawings.append(inline(figure, key=f"{key}-{css}", title=title, description=description, css=css))
    return Plot(key=key, title=title, description=description, wide=drawings[0], narrow=drawings[1])


def _value(report: Report, arm: Arm) -> Interval:
    return arm.metrics[report.primary]


def _ms(arm: Arm) -> float:
    """Return the arm's milliseconds per user; a log scale has no room for less than a microsecond."""
    return max(arm.cost.ms_per_user or 0.0, _FEWEST_MS)


def _can_place(report: Report, arm: Arm) -> bool:
    return words.defined(primary(report, arm)) and words.defined(arm.cost.ms_per_user)


def _frontier(report: Report, arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that beat every cheaper arm, cheapest first; oracles do not count."""
    best: list[Arm] = []
    for arm in sorted(arms, key=lambda arm: (_ms(arm), -_value(report, arm).mean)):
        if not arm.oracle and (not best or _value(report, arm).mean > _value(report, best[-1]).mean):
            best.append(arm)
    return best


def _draw_arm(axes: Axes, report: Report, arm: Arm) -> None:
    value, colour = _value(report, arm), COLOURS[arm.kind]
    if value.known:
        axes.plot([_ms(arm)] * 2, [value.low, value.high], color=colour, linewidth=1.4, zorder=2)
    hollow = arm.oracle
    axes.plot(
        [_ms(arm)],
        [value.mean],
        marker=MARKERS[arm.kind],
        markersize=7.5 if arm.kind != "fusion" else 7,
        markerfacecolor=COLOURS["paper"] if hollow else colour,
        markeredgecolor=colour,
        linestyle="none",
        zorder=3,
    )


def _label_arms(figure: Figure, axes: Axes, report: Report, arms: Sequence[Arm]) -> None:
    """Write each arm's name beside its mark; what finds no free place stays with the table alone."""
    figure.draw_without_rendering()  # fixes the layout, so that pixels are known
    figure.set_layout_engine("none")
    rank = {"fusion": 1, "llm": 2, "cheap": 3, "control": 4}
    order = sorted(arms, key=lambda a: (a.name != report.reference, rank[a.kind], -_value(report, a).mean))
    points = [axes.transData.transform((_ms(arm), _value(report, arm).mean)) for arm in order]
    anchors = [(float(x), float(y)) for x, y in points]
    obstacles = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in anchors]
    for arm, (x, _) in zip(order, anchors, strict=True):
        value = _value(report, arm)
        if value.known:
            ends = [float(axes.transData.transform((_ms(arm), end))[1]) for end in (value.low, value.high)]
            obstacles.append(Box(x - 2, ends[0], x + 2, ends[1]))
    names = [_name(report, arm) for arm in order]
    texts = [axes.text(0, 0, name, fontsize=10.5, transform=None, va="bottom", zorder=4) for name in names]
    sizes = [_size(text) for text in texts]
    area = axes.get_window_extent()
    frame = Box(area.x0 - 30, area.y0, min(area.x1 + 30, figure.bbox.x1), area.y1)
    for text, box, anchor in zip(texts, place(anchors, sizes, obstacles, frame), anchors, strict=True):
        if box is None:
            text.remove()
            continue
        text.set_position((box.x0, box.y0))
        _leader(axes, anchor, box)


def _name(report: Report, arm: Arm) -> str:
    role = " (reference)" if arm.name == report.reference else " (oracle)" if arm.oracle else ""
    return words.clean(arm.label) + role


def _leader(axes: Axes, anchor: tuple[float, float], box: Box) -> None:
    """Draw a thin line from a mark to a label that had to move away."""
    near = (min(max(anchor[0], box.x0), box.x1), min(max(anchor[1], box.y0), box.y1))
    if abs(near[0] - anchor[0]) + abs(near[1] - anchor[1]) > 15:
        axes.plot(
            [anchor[0], near[0]],
            [anchor[1], near[1]],
            transform=None,
            color=COLOURS["muted"],
            linewidth=0.6,
            zorder=1,
        )


def _size(text: Text) -> tuple[float, float]:
    extent = text.get_window_extent()
    return float(extent.width) + 2, float(extent.height)


def _label_ends(
    figure: Figure, axes: Axes, rows: Sequence[tuple[str, Sequence[Interval]]], *, inside: bool
) -> None:
    """Write names at the right ends of lines, or above the drawing where there is no room."""
    ends = [next((v.mean for v in reversed(row) if words.defined(v.mean)), 0.0) for _, row in rows]
    if inside:
        handles = [line for line in axes.get_lines()]
        names = [words.clean(name) for name, _ in rows]
        figure.legend(handles, names, loc="outside upper left", frameon=False, fontsize=10, handlelength=2.6)
        return
    figure.draw_without_rendering()
    pixels = [float(axes.transData.transform((0, end))[1]) for end in ends]
    last = len(rows[0][1]) - 1
    for (name, _), at, wanted in zip(rows, spread(pixels, 15.0), pixels, strict=True):
        end = axes.transData.inverted().transform((0, wanted))[1]
        axes.annotate(
            words.clean(name), (last, end), (10, at - wanted), textcoords="offset points", va="center"
        )


def _chosen_for_lines(report: Report) -> list[Arm]:
    """Return the reference, then the best arm of each other kind: few enough lines to tell apart."""
    found = [report.arm(report.reference)]
    found += [
        arm for kind in (*LLM_KINDS, "control") if (arm := best_arm(_in_deciles(report), (kind,))) is not None
    ]
    return list({arm.name: arm for arm in found}.values())


def _in_deciles(report: Report) -> Report:
    """Return the report with only the arms that have activity groups, and the reference."""
    names = {report.reference, *(report.deciles.arms if report.deciles else ())}
    arms = tuple(arm for arm in report.arms if arm.name in names)
    return replace(report, arms=arms, warmth=())


def _pairs(edges: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(edges[:-1], edges[1:], strict=True))
