"""Texts beside the points of a panel: their bits, and their values where they are off the scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.patheffects import withStroke

from qbench.reports.looks import MUTED, PAPER, Look
from qbench.reports.points import Point, Scale

MARK = 6.0  # half of a mark and the room beside it, in 1/72 inch
CHARACTER = 5.4  # width of one in a label of 8.5 points, in 1/72 inch
AXES_SHARE = 0.8  # of a figure's width for each of its panels
HEIGHT_SHARE = 0.68  # of a figure's height
LABEL_REACH = 16.0  # from a point to the far end of its bits, up or down, in 1/72 inch
LINE = 11.0  # height of a line of text, in 1/72 inch
HALO = [withStroke(linewidth=2.5, foreground=PAPER)]


def label_collapsed(
    axes: Any, lines: dict[str, list[Point]], styles: dict[str, Look], scale: Scale
) -> None:
    """The values of the points at the edge, in rows in which no label meets another or a mark."""
    low, high = axes.get_xlim()
    unit = (high - low) / _size(axes)[0]  # of the data, in 1/72 inch
    collapsed = []
    for name, points in lines.items():
        collapsed += [(point, name) for point in points if scale.beyond(point.y)]
    taken = [[(point.x - MARK * unit, point.x + MARK * unit) for point, _ in collapsed]]
    for point, name in sorted(collapsed, key=lambda member: member[0].x):
        text = f"{arrow(scale)} {brief(point.y)}"
        far = MARK + CHARACTER * len(text)
        side = 1 if point.x + far * unit <= high else -1  # of the mark: within the frame
        begin, end = sorted(point.x + side * distance * unit for distance in (MARK, far))
        row = 0
        while any(begin < right and left < end for left, right in _row(taken, row)):
            row += 1
        taken[row].append((begin, end))
        put_label(
            axes,
            text,
            (point.x, scale.place(point.y)),
            color=styles[name]["color"],
            fontsize=8.5,
            xytext=(side * (MARK + 1), -12 * scale.worse * row),
            ha="left" if side > 0 else "right",
            va="center",
        )


def _row(taken: list[list[tuple[float, float]]], row: int) -> list[tuple[float, float]]:
    """What is taken of a row of labels; rows are added as they are asked for."""
    while len(taken) <= row:
        taken.append([])
    return taken[row]


def label_bits(axes: Any, lines: Sequence[Sequence[Point]], scale: Scale) -> None:
    """The nominal bits beside the points of one line.

    It is the worst one among those with the most points on the scale: there is room on its far
    side, and the strip of the others has words of its own.
    """
    shown = [sum(scale.place(point.y) == point.y for point in points) for points in lines]
    candidates = [points for points, on in zip(lines, shown, strict=True) if on == max(shown)]
    chosen = max(candidates, key=lambda points: scale.worse * points[0].y)
    for point in chosen:
        if point.bits:
            put_label(
                axes,
                f"{point.bits}-bit",
                (point.x, scale.place(point.y)),
                color=MUTED,
                fontsize=8,
                xytext=(7, 6 * scale.worse),
                va="bottom" if scale.worse > 0 else "top",
            )


def clear_start(
    axes: Any, name: str, y: float, below: float, points: Sequence[Point], scale: Scale
) -> float:
    """Where a name at a level begins, as a share of the width: where it meets no point or its bits.

    At the left if there is room, else behind one of the points. below: how far from the level, to
    the better side, in 1/72 inch. The limits of the axes are final.
    """
    width, height = _size(axes)
    share = axes.transData + axes.transAxes.inverted()
    level = share.transform((0, y))[1]
    near = []  # left and right end of what stands in the name's line
    for point in points:
        across, up = share.transform((point.x, scale.place(point.y)))
        depth = (level - up) * scale.worse * height - below
        if -MARK < depth < LINE + LABEL_REACH:
            label = CHARACTER * len(f"{point.bits}-bit")
            near.append((across * width - MARK, across * width + MARK + label))
    for start in (0.0, *sorted(right for _, right in near)):
        end = start + MARK + CHARACTER * len(name)
        if end <= width and not any(start < right and left < end for left, right in near):
            return start / width
    return 0.0


def _size(axes: Any) -> tuple[float, float]:
    """About how wide and high the axes will be, in 1/72 inch."""
    figure = axes.figure
    width = figure.get_figwidth() / len(figure.axes) * AXES_SHARE
    return 72 * width, 72 * figure.get_figheight() * HEIGHT_SHARE


def put_label(axes: Any, text: str, place: tuple[float, float], **how: Any) -> None:
    """A text beside a place of the data. how: keywords of `annotate`; xytext in 1/72 inch."""
    axes.annotate(text, place, textcoords="offset points", path_effects=HALO, zorder=5, **how)


def arrow(scale: Scale) -> str:
    """To where the scores are worse: `↑` or `↓`."""
    return "↑" if scale.worse > 0 else "↓"


def brief(value: float) -> str:
    """Three digits, or two and an exponent: `19.8`, `1.1e6`."""
    if 1e-3 <= abs(value) < 1e4:
        if abs(value) >= 1000:  # `.3g` would write an exponent
            return f"{value:.0f}"
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
