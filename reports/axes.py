"""One panel: a score against measured bits per weight, size or latency.

A line per method, with the 95 % intervals of the paired differences from the unquantized model,
which is a dashed line, and the Pareto line of the cells that no other one beats at its cost. Each
point is an element of its own, so that a page can name it and link it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from qbench.comparison.pairs import Pairs
from qbench.records import Record
from qbench.reports.headline import Headline
from qbench.reports.looks import INK, MUTED, RULE, Look
from qbench.reports.point_labels import (
    arrow,
    brief,
    clear_start,
    label_bits,
    label_collapsed,
    put_label,
)
from qbench.reports.points import BITS, Cost, Point, Scale, frontier, points_by_line, scale_of

LEAST_TICKS = 4  # of a logarithmic axis: fewer tell neither its steps nor that it is one
LONG_LABEL = 45  # characters: more of an axis do not fit beside it on one line
MOST_LINES = 24  # that an eye can follow in a panel
MARKS = "marks "  # before the ids of a line's cells, the name of its marks
LEAST_SPAN = 0.05  # of the numbers on an axis, as a part of them


def panel(
    axes: Any,
    mine: Sequence[Record],
    headline: Headline,
    styles: dict[str, Look],
    notes: list[str],
    pairs: Pairs,
    cost: Cost = BITS,
) -> set[str]:
    """Draw one score of one model; return the names of its lines.

    mine: the records of the model. styles: of all lines by name. notes: gets what could not be
    drawn, and what a reader must know. pairs: of the run. cost: what the score is drawn against.
    """
    baselines, lines = _told_apart(points_by_line(mine, headline, notes, pairs, cost))
    lines = _fewer(lines, headline, notes)
    quantized = [point for line in lines.values() for point in line]
    alone = [point for point in quantized or baselines.values() if not point.paired]
    notes += _meaning_of_bars(quantized, alone)
    scale = scale_of(headline, [*baselines.values(), *quantized])
    if scale.log:
        axes.set_yscale("log", nonpositive="clip")
    _frame(axes, headline, cost, scale)
    for alike in _judged_alike(quantized, notes):
        _pareto(axes, [point for point in alike if not scale.beyond(point.y)], scale)
    for name, points in lines.items():
        _draw_line(axes, points, styles[name], scale)
    if lines:
        _widen(axes)
    if scale.edge is not None:
        label_collapsed(axes, lines, styles, scale)
        mark = arrow(scale)
        notes.append(f"Points marked {mark} are off the scale, with their value beside them.")
    _baselines(axes, baselines, scale, band=bool(alone))
    if lines:
        label_bits(axes, list(lines.values()), scale)
    else:
        axes.set_xticks([])
    if scale.log:
        _log_ticks(axes)
    if scale.edge is not None:
        _strip(axes, scale)
    _name_baselines(axes, baselines, quantized, scale)
    return set(lines)


def _told_apart(
    by_name: Mapping[str, list[Point]],
) -> tuple[dict[str, Point], dict[str, list[Point]]]:
    """The points of the models as they are, and the lines of the others from left to right."""
    baselines: dict[str, Point] = {}
    lines: dict[str, list[Point]] = {}
    for name, points in by_name.items():
        if points[0].baseline:
            baselines[name] = points[0]
        else:
            lines[name] = sorted(points, key=lambda point: point.x)
    return baselines, lines


def _meaning_of_bars(quantized: Sequence[Point], alone: Sequence[Point]) -> list[str]:
    """What the bars hold, a sentence each. alone: the points that are not paired."""
    told = []
    if len(alone) < len(quantized):
        told.append(
            "Bars: 95 % interval of the paired difference from the model before quantization."
        )
    if alone:
        told.append("Without items of both models: 95 % interval of the score alone.")
    return told


def _widen(axes: Any) -> None:
    """Make costs that differ by bytes stand above each other, as those do that are the same."""
    low, high = axes.get_xlim()
    middle = (low + high) / 2
    half = max(high - low, LEAST_SPAN * middle) / 2
    axes.set_xlim(middle - half, middle + half)


def _judged_alike(points: Sequence[Point], notes: list[str]) -> list[list[Point]]:
    """The points by how they were judged; a note says where there are several ways."""
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(point.judged, []).append(point)
    if len(groups) > 1:
        notes.append(
            "Cells of several revisions, dtypes, devices or versions of code, as their names say: "
            "a grey line and a bar hold within one of them."
        )
    return list(groups.values())


def _fewer(
    lines: dict[str, list[Point]], headline: Headline, notes: list[str]
) -> dict[str, list[Point]]:
    """At most MOST_LINES, those that hold the best points; a note tells how many were left out."""
    if len(lines) <= MOST_LINES:
        return lines
    sign = -1 if headline.higher_is_better else 1
    best = sorted(lines, key=lambda name: min(sign * point.y for point in lines[name]))
    notes.append(
        f"{len(lines) - MOST_LINES} more lines, with worse scores, are in the table alone."
    )
    chosen = set(best[:MOST_LINES])
    return {name: points for name, points in lines.items() if name in chosen}


def _frame(axes: Any, headline: Headline, cost: Cost, scale: Scale) -> None:
    better = "lower is better ↓"
    if headline.higher_is_better:
        better = "higher is better ↑"
    label = headline.measure
    if scale.log:
        label += " (log scale)"
    axes.set_title(headline.title, loc="left", fontsize=11, fontweight="bold")
    end = ",\n" if len(label) + len(better) > LONG_LABEL else ", "
    axes.set_ylabel(f"{label}{end}{better}", labelpad=7)
    axes.set_xlabel(cost.label)
    axes.margins(0.08, 0.1)
    axes.grid(False, axis="x")


def _draw_line(axes: Any, points: Sequence[Point], look: Look, scale: Scale) -> None:
    """The line with its bars, and a mark per point; a point at the edge has no bar."""
    halves = [scale.bar(point) for point in points]
    axes.errorbar(
        [point.x for point in points],
        [scale.place(point.y) for point in points],
        yerr=list(zip(*halves, strict=True)),
        capsize=2.5,
        elinewidth=1.1,
        zorder=3,
        **(look | {"marker": ""}),
    )
    words = "\n".join(point.text.replace("\n", " ") for point in points)  # a line for each mark
    axes.plot(
        [point.x for point in points],
        [scale.place(point.y) for point in points],
        zorder=4,
        gid=MARKS + " ".join(point.cell for point in points),
        **(look | {"linestyle": "", "label": words}),
    )


def _pareto(axes: Any, points: Sequence[Point], scale: Scale) -> None:
    """The line of the points that no other one beats at its cost, in steps."""
    best = frontier(points, scale.worse)
    if len(best) > 1:
        axes.plot(
            [point.x for point in best],
            [point.y for point in best],
            drawstyle="steps-post",
            color=RULE,
            linewidth=5,
            solid_capstyle="round",
            zorder=1.5,
            gid="pareto",
        )


def _strip(axes: Any, scale: Scale) -> None:
    """The strip of the points that are off the scale, marked as such."""
    assert scale.edge is not None
    low, high = axes.get_ylim()
    end = high if scale.worse > 0 else low
    if scale.log:
        begin = scale.edge * (high / low) ** (-0.03 * scale.worse)
    else:
        begin = scale.edge - 0.03 * scale.worse * (high - low)
    axes.axhspan(begin, end, color=MUTED, alpha=0.13, linewidth=0, zorder=0.5)
    axes.set_ylim(low, high)
    put_label(
        axes,
        "off the scale",
        (1, end),
        xycoords=("axes fraction", "data"),
        color=MUTED,
        fontsize=8,
        xytext=(-4, -3 * scale.worse),
        ha="right",
        va="top" if scale.worse > 0 else "bottom",
    )


def _baselines(axes: Any, baselines: Mapping[str, Point], scale: Scale, band: bool) -> None:
    """The dashed lines of all unquantized models; band: as of `_baseline`."""
    if len(baselines) > 1:  # each needs a line for its name
        axes.margins(y=0.1 + 0.07 * (len(baselines) - 1))
    for name, base in baselines.items():
        _baseline(axes, name, base, scale, band)


def _baseline(axes: Any, name: str, base: Point, scale: Scale, band: bool) -> None:
    """The dashed line. band: whether its own interval is drawn, which says nothing of paired
    differences.
    """
    axes.axhline(base.y, color=INK, linewidth=1.3, linestyle=(0, (6, 3)), zorder=2, label=name)
    # A line within the margin of the points moves no limit by itself, and its name has no room.
    axes.autoscale_view(scalex=False)
    if band:
        lower, upper = scale.bar(base)
        ends = (base.y - lower, base.y + upper)
        axes.axhspan(*ends, color=INK, alpha=0.12, linewidth=0, zorder=1)


def _name_baselines(
    axes: Any, baselines: Mapping[str, Point], points: Sequence[Point], scale: Scale
) -> None:
    """The names at the dashed lines, on the better side and clear of points where there is room.

    Each has a line of text of its own, so that they do not meet. The limits of the axes are final.
    """
    for k, (name, base) in enumerate(baselines.items()):
        below = 4 + 12 * k
        put_label(
            axes,
            name,
            (clear_start(axes, name, base.y, below, points, scale), base.y),
            fontsize=9,
            xycoords=("axes fraction", "data"),
            xytext=(4, -below * scale.worse),
            va="top" if scale.worse > 0 else "bottom",
        )


def _log_ticks(axes: Any) -> None:
    """Plain numbers, as few as tell the scale: at least four, of the coarsest series that has so.

    matplotlib has one or two where little is spanned, and fails where nothing is.
    """
    low, high = axes.get_ylim()
    room = ((1 + LEAST_SPAN) * low / high) ** 0.5
    if room > 1:
        low, high = low / room, high * room
        axes.set_ylim(low, high)
    series: list[Locator] = [
        LogLocator(subs=subs, numticks=9) for subs in ((1,), (1, 3), (1, 2, 5))
    ]
    series.append(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for locator in series:
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if len(ticks) >= LEAST_TICKS:
            break
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
