"""The report's smaller drawings: activity groups, training loss, history lengths, cost by stage.

Every drawing exists twice, wide and narrow, so that its text stays readable on a phone, and every drawing
has a table with the same numbers. Kinds of arms differ in marker as well as in colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from frugalrec.reporting import words
from frugalrec.reporting.document import Arm, Interval, Report
from frugalrec.reporting.judge import LLM_KINDS, best_arm
from frugalrec.reporting.labels import spread
from frugalrec.reporting.svg import COLOURS, blank, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"cheap": "o", "llm": "s", "fusion": "D", "control": "X"}
_LINES = {"cheap": "-", "llm": (0, (5, 1.5)), "fusion": "-", "control": (0, (1, 1.2))}
_WIDE, _HALF, _NARROW = 760, 540, 340


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
                xs, means, color=colour, linestyle=_LINES[arm.kind], marker=MARKERS[arm.kind], markersize=5.5
            )
        narrow = width < 500
        axes.set_xticks(
            xs,
            [words.shorten(label.replace(" to ", "–"), 11) for label in table.labels],
            fontsize=8.5 if narrow else 10,
        )
        if narrow:
            axes.tick_params(axis="x", rotation=60)
        axes.set_xlabel("Interactions of the user")
        axes.set_title(name, loc="left", fontsize=11, color=COLOURS["muted"])
        _label_ends(figure, axes, [(arm.label, table.arms[arm.name]) for arm in shown], inside=narrow)
        return figure

    return both("deciles-plot", f"{name} by activity", description, draw, (340, 380))


def loss(report: Report) -> Plot | None:
    """Draw the training loss."""
    curve = [pair for pair in (report.tuning or {}).get("loss", []) if words.defined(pair[1])]
    if len(curve) < 2:
        return None
    first, last = words.fixed(curve[0][1], 3), words.fixed(curve[-1][1], 3)
    description = f"Training loss goes from {first} to {last} over {words.plain(curve[-1][0])} steps."

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs, ys = [pair[0] for pair in curve], [pair[1] for pair in curve]
        axes.plot(xs, ys, color=COLOURS["llm"], linewidth=1.6)
        axes.set_ylim(bottom=min(0.0, *ys))
        axes.set_xlabel("Step")
        axes.set_title("Training loss", loc="left", fontsize=11, color=COLOURS["muted"])
        return figure

    return both("loss-plot", "Training loss", description, draw, (220, 220), wide=_HALF)


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
        spans = [_span(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        every = -(-len(xs) // (6 if width < 500 else 12))  # no more ticks than fit
        axes.set_xticks(xs[::every], spans[::every])
        axes.set_xlabel("History length")
        axes.set_title("Share of samples, %", loc="left", fontsize=11, color=COLOURS["muted"])
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
        return figure

    return both(
        "lengths-plot",
        "History lengths of kept and of all samples",
        description,
        draw,
        (260, 260),
        wide=_HALF,
    )


def kept_deciles(report: Report) -> Plot | None:
    """Draw the share of kept samples in each tenth of the scores."""
    shares = (report.selection or {}).get("deciles")
    if not shares:
        return None
    top = shares[-1] / sum(shares)
    description = (
        f"Share of the kept samples in each tenth of the scores; the highest holds {words.percent(top)}. "
        f"The dashed line is a choice that does not look at the scores."
    )

    def draw(width: int, height: int) -> Figure:
        figure, axes = blank(width, height)
        xs = list(range(1, len(shares) + 1))
        axes.bar(xs, [100 * share for share in shares], 0.7, color=COLOURS["llm"])
        line = axes.axhline(100 / len(shares), color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (5, 3)))
        figure.legend([line], ["by chance"], loc="outside upper right", frameon=False, fontsize=10)
        axes.set_xticks(xs)
        axes.set_xlabel("Tenth of the scores, lowest first")
        axes.set_title("Share of kept samples, %", loc="left", fontsize=11, color=COLOURS["muted"])
        return figure

    title = "Kept samples by score"
    return both("kept-deciles-plot", title, description, draw, (240, 240), wide=_HALF)


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
        axes.set_yticks(
            range(len(rows)), [words.shorten(stage.name, 18) for stage in rows], color=COLOURS["ink"]
        )
        axes.set_xticks([])
        axes.margins(y=0.02)
        axes.set_xlim(0, longest.wall_s * (1.45 if width < 500 else 1.15))
        return figure

    height = 40 + 30 * len(report.stages)
    return both("stages-plot", "Wall time by stage", description, draw, (height, height), wide=_HALF)


def both(
    key: str,
    title: str,
    description: str,
    draw: Callable[[int, int], Figure],
    heights: tuple[int, int],
    *,
    wide: int = _WIDE,
) -> Plot:
    """Draw in both widths; `heights` belong to the wide and the narrow drawing."""
    drawings = []
    for css, width, height in (("wide", wide, heights[0]), ("narrow", _NARROW, heights[1])):
        with style():
            figure = draw(width, height)
            drawings.append(inline(figure, key=f"{key}-{css}", title=title, description=description, css=css))
    return Plot(key=key, title=title, description=description, wide=drawings[0], narrow=drawings[1])


def _label_ends(
    figure: Figure, axes: Axes, rows: Sequence[tuple[str, Sequence[Interval]]], *, inside: bool
) -> None:
    """Write names at the right ends of lines, or above the drawing where there is no room."""
    ends = [next((v.mean for v in reversed(row) if words.defined(v.mean)), 0.0) for _, row in rows]
    if inside:
        handles = [line for line in axes.get_lines()]
        names = [words.shorten(name, 34) for name, _ in rows]
        figure.legend(handles, names, loc="outside upper left", frameon=False, fontsize=10, handlelength=2.6)
        return
    figure.draw_without_rendering()
    pixels = [float(axes.transData.transform((0, end))[1]) for end in ends]
    last = len(rows[0][1]) - 1
    for (name, _), line, at, wanted in zip(rows, axes.get_lines(), spread(pixels, 15.0), pixels, strict=True):
        end = axes.transData.inverted().transform((0, wanted))[1]
        text = axes.annotate(
            words.shorten(name, 26), (last, end), (10, at - wanted), textcoords="offset points"
        )
        text.set(va="center", color=line.get_color())


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


def _span(start: float, end: float) -> str:
    """Return the whole numbers from `start` up to, but not including, `end`."""
    return f"{words.plain(start)}–{words.plain(end - 1)}" if end - start > 1 else words.plain(start)
