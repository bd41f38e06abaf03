"""One panel: a score against measured bits per weight, a line per method, the unquantized model as a band."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from qbench.records import Record
from qbench.reports.headline import Headline, names, ordered, protocol, unquantized

INK, MUTED, RULE, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
COLOURS = {  # after Okabe and Ito, legible on white; beside each what a dark page puts instead
    "#0072b2": "#58a6e6",
    "#d55e00": "#ff8a4c",
    "#009e73": "#2fc79b",
    "#aa4499": "#de8bd0",
    "#e69f00": "#f2bd4a",
    "#2f9fd0": "#8fd3f7",
    "#882255": "#e57ba4",
    "#777733": "#bdbb63",
}
MARKERS = "osD^vPXph<>"  # 11, coprime with the 8 colours: 88 pairs before one comes again
DASHES = ("-", "--", ":", "-.")
COLLAPSE = {
    "perplexity": 30.0,
    "gold_logprob": 2.0,
    "gold_nll": 2.0,
}  # times, nats: worse is drawn at the edge
HALO = [withStroke(linewidth=2.5, foreground=PAPER)]

Look = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A cell in a panel; bits are the nominal ones, None where it has none."""

    x: float
    y: float
    error: float
    bits: int | None
    baseline: bool


def looks(records: Sequence[Record]) -> dict[str, Look]:
    """Colour, marker and dashes of every line by its name, the same in all pictures of these records."""
    called = names(records)
    labels = dict.fromkeys(
        called[record.id] for record in ordered(records) if not unquantized(record)
    )
    colours = list(COLOURS)
    hollow = {
        "markerfacecolor": "none",
        "markeredgewidth": 1.5,
        "markersize": 6.5,
        "linewidth": 1.6,
    }
    return {
        label: {
            "color": colours[k % 8],
            "marker": MARKERS[k % 11],
            "linestyle": DASHES[k // 8 % 4],
            **hollow,
        }
        for k, label in enumerate(labels)
    }


def unbroken(label: str) -> str:
    """With spaces at which no line ends."""
    return label.replace(" ", "\u00a0")


def panel(
    axes: Any, mine: Sequence[Record], headline: Headline, styles: dict[str, Look], notes: list[str]
) -> set[str]:
    """Draws one score of one model; returns the names of its lines, and notes what it could not draw."""
    log = headline.metric.endswith("perplexity") or headline.metric.startswith("kl_")
    lines = _points(mine, headline, log, notes)
    base = [points[0] for points in lines.values() if points[0].baseline]
    lines = {
        name: sorted(points, key=lambda p: p.x)
        for name, points in lines.items()
        if not points[0].baseline
    }
    if log:
        axes.set_yscale("log", nonpositive="clip")
    _frame(axes, headline)
    sign = -1 if headline.higher_is_better else 1  # where worse is on the page
    edge = _edge([*base, *(point for points in lines.values() for point in points)], headline, sign)
    shifts = _shifts(lines)
    for name, points in lines.items():
        bars = _line(axes, points, styles[name], edge, sign)
        aside = ScaledTranslation(shifts[name] / 72, 0, axes.get_figure().dpi_scale_trans)
        for artist in bars.get_children():
            artist.set_transform(axes.transData + aside)
    if any(shifts.values()):
        notes.append("Points of equal bits are set side by side.")
    if edge is not None:
        _off_scale(axes, lines, styles, edge, sign)
        notes.append(
            f"Points marked {'↑' if sign > 0 else '↓'} are off the scale, with their value beside them."
        )
    if base:
        _baseline(axes, base[0], -sign)
    if lines:
        _nominal(axes, list(lines.values()), edge, sign)
    else:
        axes.set_xticks([])
    if log:
        _log_ticks(axes)
    return set(lines)


def _points(
    mine: Sequence[Record], headline: Headline, log: bool, notes: list[str]
) -> dict[str, list[Point]]:
    scored = [(record, score) for record in mine if (score := headline.of(record))]
    usual = Counter(protocol(record, headline.task) for record, _ in scored).most_common(1)
    scale, called = 100.0 if headline.unit == "%" else 1.0, names(mine)
    lines: dict[str, list[Point]] = {}
    for record, score in scored:
        y, error, scheme = score.value * scale, (score.stderr or 0.0) * scale, record.cell.scheme
        x = 0.0 if unquantized(record) else record.bits_per_weight.get("total")
        if protocol(record, headline.task) != usual[0][0]:
            notes.append(
                f"Not drawn, since {headline.task} was run otherwise: {unbroken(record.cell.label)}."
            )
        elif unquantized(record) and headline.metric.startswith("kl_"):
            continue  # the divergence of the unquantized model from itself is rounding, and would stretch the axis
        elif x is None or not math.isfinite(y) or (log and y <= 0):
            notes.append(f"Not drawn, {headline.metric} {y:g}: {unbroken(record.cell.label)}.")
        else:
            error = error if math.isfinite(error) else 0.0
            point = Point(x, y, error, scheme.bits if scheme else None, unquantized(record))
            lines.setdefault(called[record.id], []).append(point)
    return lines


def _edge(points: Sequence[Point], headline: Headline, sign: int) -> float | None:
    """Where the panel ends if some points collapsed, so that the others can still be told apart."""
    room = COLLAPSE.get(headline.metric)
    if room is None or not points:
        return None
    first = min((point.y for point in points), key=lambda y: y * sign)
    edge = first * room if headline.metric == "perplexity" else first + sign * room
    return edge if any(_beyond(point.y, edge, sign) for point in points) else None


def _beyond(y: float, edge: float | None, sign: int) -> bool:
    return edge is not None and y * sign > edge * sign


def _frame(axes: Any, headline: Headline) -> None:
    better = "higher is better ↑" if headline.higher_is_better else "lower is better ↓"
    axes.set_title(headline.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(
        f"{headline.metric}{' %' if headline.unit == '%' else ''}, {better}", labelpad=7
    )
    axes.set_xlabel("measured bits per weight")
    axes.margins(0.08, 0.1)
    axes.grid(False, axis="x")


def _line(axes: Any, points: Sequence[Point], look: Look, edge: float | None, sign: int) -> Any:
    log, beyond = axes.get_yscale() == "log", [_beyond(point.y, edge, sign) for point in points]
    y = [edge if out else point.y for out, point in zip(beyond, points, strict=True)]
    high = [0.0 if out else point.error for out, point in zip(beyond, points, strict=True)]
    low = [
        min(bar, point.y * 0.999) if log else bar for bar, point in zip(high, points, strict=True)
    ]
    x = [point.x for point in points]
    return axes.errorbar(x, y, yerr=[low, high], capsize=2.5, elinewidth=1.1, zorder=3, **look)


def _shifts(lines: dict[str, list[Point]]) -> dict[str, float]:
    """How many points (1/72 inch) each line moves aside, so that those of the same bits do not cover each other."""
    together: dict[float, list[str]] = {}
    for name, points in lines.items():
        together.setdefault(round(points[-1].x, 1), []).append(name)
    return {
        name: (k - (len(group) - 1) / 2) * min(5.0, 28 / len(group))
        for group in together.values()
        for k, name in enumerate(group)
    }


def _off_scale(
    axes: Any, lines: dict[str, list[Point]], styles: dict[str, Look], edge: float, sign: int
) -> None:
    """The values of the points at the edge, one after the other where they share a place."""
    taken: Counter[float] = Counter()
    for name, points in lines.items():
        for point in points:
            if _beyond(point.y, edge, sign):
                rows = -12 * sign * taken[round(point.x, 1)]
                place = {"xytext": (8, rows), "textcoords": "offset points", "va": "center"}
                text = f"{'↑' if sign > 0 else '↓'} {_brief(point.y)}"
                _label(
                    axes, text, (point.x, edge), color=styles[name]["color"], fontsize=8.5, **place
                )
                taken[round(point.x, 1)] += 1


def _baseline(axes: Any, base: Point, sign: int) -> None:
    axes.axhline(
        base.y, color=INK, linewidth=1.3, linestyle=(0, (6, 3)), zorder=2, label="unquantized"
    )
    low = min(base.error, abs(base.y) * 0.999) if axes.get_yscale() == "log" else base.error
    axes.axhspan(base.y - low, base.y + base.error, color=INK, alpha=0.12, linewidth=0, zorder=1)
    place = {
        "xycoords": ("axes fraction", "data"),
        "xytext": (4, 4 * sign),
        "textcoords": "offset points",
    }
    _label(
        axes, "unquantized", (0, base.y), va="bottom" if sign > 0 else "top", fontsize=9, **place
    )


def _nominal(axes: Any, lines: Sequence[Sequence[Point]], edge: float | None, sign: int) -> None:
    """The nominal bits beside the points of one of the longest lines, the worst one: there is room on its far side."""
    longest = max(len(points) for points in lines)
    chosen = max(
        (points for points in lines if len(points) == longest),
        key=lambda points: sign * points[0].y,
    )
    place = {
        "xytext": (7, 6 * sign),
        "textcoords": "offset points",
        "va": "bottom" if sign > 0 else "top",
    }
    for point in (point for point in chosen if point.bits):
        y = edge if edge is not None and _beyond(point.y, edge, sign) else point.y
        _label(axes, f"{point.bits}-bit", (point.x, y), color=MUTED, fontsize=8, **place)


def _label(axes: Any, text: str, place: tuple[float, float], **how: Any) -> None:
    axes.annotate(text, place, path_effects=HALO, zorder=5, **how)


def _log_ticks(axes: Any) -> None:
    low, high = axes.get_ylim()
    if high / low < 5:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=9)
        )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))


def _brief(value: float) -> str:
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
