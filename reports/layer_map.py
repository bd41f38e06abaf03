"""What each layer of a quantized model costs: rows for a table, JSON, and a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qbench.comparison.digits import places_of, plain
from qbench.reports.plots import STYLE

MOST_ROWS = 15
DIGITS = 3  # significant ones of what has no interval
LEAST = 1e-6  # nats: what is below is rounding, and has the lightest color
GREY = "#dddddd"
COLUMNS = ("layer", "KL alone", "KL gained", "weight error", "output error", "bits")
PANELS = {
    "alone": "KL (nats), this layer alone quantized; grey: none beyond chance",
    "gain": "KL (nats) gained, this layer restored; grey: no gain beyond chance",
    "output_error": "squared error of the output, relative",
}


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """COLUMNS of the layers that gain most, as text, MOST_ROWS of them.

    report: as `qbench layers` writes it to `layers.json`.
    """
    effects = sorted(report["effects"], key=lambda effect: -effect["gain"]["value"])
    lines: list[tuple[str, ...]] = []
    for effect in effects[:MOST_ROWS]:
        bits, output = effect["bits"], effect["output_error"]
        line = (
            effect["name"],
            interval(effect["alone"]),
            interval(effect["gain"]),
            f"{effect['weight_error']:.3g}",
            "" if output is None else f"{output:.3g}",
            "" if bits is None else f"{bits:.2f}",
        )
        lines.append(line)
    return lines


def advice(report: Mapping[str, Any]) -> str:
    """What keeping the most rewarding layers as they are buys, in a sentence; empty without any."""
    kept = report["kept"]
    if kept is None:
        return ""
    gain = kept["gain"]
    share = gain["value"] / kept["before"] if kept["before"] else 0.0
    text = (
        f"keep {', '.join(kept['names'])} as they are: KL {kept['before']:.4g} -> "
        f"{kept['after']:.4g}, {interval(gain)} less ({share:.0%}), measured together on other "
        f"windows; separately they add up to {kept['summed']:.3g}"
    )
    if kept["bits_before"] is not None:
        text += f"; bits per weight {kept['bits_before']:.3f} -> {kept['bits_after']:.3f}"
    return text


def interval(difference: Mapping[str, Any]) -> str:
    """`0.120 [0.100, 0.140]`; an end that JSON has no number for is infinite.

    All three to the same place, two digits of half the interval, so that the value is within it.
    """
    low, high = difference["low"], difference["high"]
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    half, value = (ends[1] - ends[0]) / 2, difference["value"]
    places = DIGITS
    if 0 < half < math.inf:
        places = places_of(half, 2)
    elif value:
        places = places_of(abs(value), DIGITS)
    texts = [plain(number, places) for number in (value, *ends)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def heat_map(report: Mapping[str, Any], title: str) -> Figure:
    """A panel for each of PANELS that is known: block by kind, dark where it costs most."""
    effects = report["effects"]
    kinds = list(dict.fromkeys(effect["kind"] for effect in effects))
    count = 1 + max(effect["block"] for effect in effects)
    panels = [name for name in PANELS if any(_value(effect, name) for effect in effects)]
    with rc_context(STYLE):
        height = 1.1 + len(panels) * (0.75 + 0.24 * len(kinds))
        figure = Figure(figsize=(max(6.2, 2.4 + 0.24 * count), height), layout="constrained")
        figure.suptitle(title, ha="left", x=0.012, fontsize=10)
        for axes, name in zip(
            figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
        ):
            table = np.full((len(kinds), count), np.nan)
            for effect in effects:
                value = _value(effect, name)
                if value is not None and not _is_chance(effect[name]):
                    table[kinds.index(effect["kind"]), effect["block"]] = value
            _panel(figure, axes, table, kinds, PANELS[name])
    return figure


def _value(effect: Mapping[str, Any], name: str) -> float | None:
    value = effect[name]
    return value["value"] if isinstance(value, Mapping) else value


def _is_chance(value: Any) -> bool:
    """Whether the interval of a difference reaches down to nothing, as one without an end does."""
    return isinstance(value, Mapping) and (value["low"] is None or value["low"] <= 0)


def _panel(figure: Figure, axes: Any, table: Any, kinds: Sequence[str], title: str) -> None:
    """table (kinds, blocks), NaN where there is no such layer, or nothing to show of it."""
    known = table[np.isfinite(table)]
    top = max(float(known.max(initial=0.0)), LEAST)
    low = max(float(known.min(initial=top)), top / 1e4, LEAST)
    norm: Normalize = LogNorm(low, top) if top > low else Normalize(0.0, top)
    shown = np.where(np.isfinite(table), np.maximum(table, low), np.nan)
    picture = axes.pcolormesh(shown, norm=norm, cmap="viridis_r", edgecolors="white", linewidth=0.4)
    axes.set_facecolor(GREY)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
    axes.invert_yaxis()
    step = max(1, table.shape[1] // 16)
    places = np.arange(0, table.shape[1], step)
    axes.set_xticks(places + 0.5, [str(place) for place in places])
    axes.set_xlabel("block")
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(False)
    bar = figure.colorbar(picture, ax=axes, pad=0.01)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
