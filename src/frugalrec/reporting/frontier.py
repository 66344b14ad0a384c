"""The drawing of quality against cost: every arm with its interval and its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frugalrec.reporting import words
from frugalrec.reporting.document import Arm, Interval, Report
from frugalrec.reporting.judge import primary
from frugalrec.reporting.labels import Box, place
from frugalrec.reporting.plots import MARKERS, Plot, both
from frugalrec.reporting.svg import COLOURS, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_FEWEST_MS = 1e-3


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
            axes.plot(xs, ys, drawstyle="steps-post", color=COLOURS["step"], linewidth=1.1, zorder=1)
        for arm in arms:
            _draw_arm(axes, report, arm)
        axes.margins(x=0.2 if width < 500 else 0.14, y=0.1)
        axes.set_xlabel("Milliseconds per user, log scale")
        axes.set_title(name, loc="left", fontsize=11, color=COLOURS["muted"])
        axes.xaxis.set_major_formatter(lambda value, _: words.plain(value))
        axes.minorticks_off()
        _label_arms(figure, axes, report, arms)
        return figure

    return both("quality-cost", f"{name} against cost", description, draw, (430, 440))


def _value(report: Report, arm: Arm) -> Interval:
    return arm.metrics[report.primary]


def _ms(arm: Arm) -> float:
    """Return the arm's milliseconds per user; a log scale has no room for less than a microsecond."""
    return max(arm.cost.ms_per_user or 0.0, _FEWEST_MS)


def _can_place(report: Report, arm: Arm) -> bool:
    return words.defined(primary(report, arm)) and words.defined(arm.cost.ms_per_user)


def _frontier(report: Report, arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that beat every cheaper arm, cheapest first; oracles and controls do not count."""
    best: list[Arm] = []
    for arm in sorted(arms, key=lambda arm: (_ms(arm), -_value(report, arm).mean)):
        if (
            not arm.oracle
            and arm.kind != "control"
            and (not best or _value(report, arm).mean > _value(report, best[-1]).mean)
        ):
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
    obstacles += _steps(axes, report, _frontier(report, arms))
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


def _steps(axes: Axes, report: Report, frontier: Sequence[Arm]) -> list[Box]:
    """Return the stepped line as thin rectangles."""
    corners = [axes.transData.transform((_ms(arm), _value(report, arm).mean)) for arm in frontier]
    boxes = []
    for (x0, y0), (x1, y1) in zip(corners[:-1], corners[1:], strict=True):
        boxes += [Box(float(x0), float(y0) - 1, float(x1), float(y0) + 1)]
        boxes += [Box(float(x1) - 1, float(y0), float(x1) + 1, float(y1))]
    return boxes


def _name(report: Report, arm: Arm) -> str:
    role = " (reference)" if arm.name == report.reference else " (oracle)" if arm.oracle else ""
    return words.shorten(arm.label, 30) + role


def _leader(axes: Axes, anchor: tuple[float, float], box: Box) -> None:
    """Draw a thin line from a mark to a label that had to move away."""
    if box.distance(anchor) > 13:
        near = box.nearest(anchor)
        xs, ys = [anchor[0], near[0]], [anchor[1], near[1]]
        axes.plot(xs, ys, transform=None, color=COLOURS["muted"], linewidth=0.6, zorder=1)


def _size(text: Text) -> tuple[float, float]:
    extent = text.get_window_extent()
    return float(extent.width) + 2, float(extent.height)
