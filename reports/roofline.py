"""A roofline from stored timings: operations per second against operations per byte of the weight.

The slope is the memory: a product that only reads its weight lies on it. The ceiling is the rate of
dense products from the cache, above which lookups in tables can be, as they do not multiply. Both
took turns with the points.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from qbench.errors import DataError
from qbench.files.atomic import write_bytes
from qbench.reports.axes import COLOURS, INK, MARKERS, MUTED
from qbench.reports.plots import STYLE

MEMORY = ("read", "copy")  # the probes on a CPU and on a GPU
ROOFS = {"multiply bf16": "-", "multiply fp32": "--"}
DENSE = ("dense bf16", "dense fp32")

Timing = Mapping[str, Any]


def roofline(stored: Mapping[str, Any]) -> Figure:
    """One panel per matrix; a line joins the batches of a kernel. DataError where the file holds no such timings."""
    timings = [
        each for each in stored.get("benchmarks", ()) if "operations" in each.get("extra_info", {})
    ]
    shapes = list(dict.fromkeys(_matrix(each) for each in timings))
    if not shapes:
        raise DataError(
            "there are no timings of products here; write some with `qbench latency --json FILE`"
        )
    with rc_context(STYLE):
        size = (5.6 * len(shapes) + 2.2, 4.8)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
        names = [
            name for name in dict.fromkeys(each["name"] for each in timings) if not _probe(name)
        ]
        looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
        for axes, shape in zip(panels, shapes, strict=True):
            _panel(axes, shape, [each for each in timings if _matrix(each) == shape], looks)
        panels[0].set_ylabel("operations per second, 10⁹")
        handles = {
            handle.get_label(): handle
            for axes in panels
            for handle in axes.get_legend_handles_labels()[0]
        }
        figure.legend(
            handles=[*handles.values()], loc="outside right upper", fontsize=8, frameon=False
        )
        machine, device = (
            stored["machine_info"]["hardware"]["cpu"],
            timings[0]["extra_info"]["device"],
        )
        note = f"{device}, {machine}. Medians; weights come from memory, not from a cache."
        figure.supxlabel(note, fontsize=8, color=MUTED, ha="left", x=0.012)
    return figure


def write_roofline(stored: Mapping[str, Any], path: Path) -> Path:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        roofline(stored).savefig(buffer, format="png", dpi=180, metadata={"Software": "qbench"})
    return write_bytes(path, buffer.getvalue())


def _panel(
    axes: Any,
    shape: tuple[int, int],
    timings: Sequence[Timing],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(f"{shape[0]} x {shape[1]}", fontsize=10, loc="left")
    axes.set_xlabel("operations per byte of the weight")
    points = {
        name: sorted(_place(each) for each in timings if each["name"] == name) for name in looks
    }
    reach = [x for found in points.values() for x, _ in found]
    edge = (min(reach) / 6, max(reach) * 2) if reach else (1.0, 10.0)
    slopes = [
        each["extra_info"]["bytes_per_second"] / 1e9 for each in timings if each["name"] in MEMORY
    ]
    for name, dashes in ROOFS.items():
        tops = [_place(each)[1] for each in timings if each["name"] == name]
        if tops and slopes:
            _roof(axes, edge, max(slopes), max(tops), dashes, name.removeprefix("multiply "))
    for name, found in points.items():
        colour, marker = (MUTED, "x") if name in DENSE else looks[name]
        dashes = "--" if name.endswith("fp32") else "-"
        kept = {
            "color": colour,
            "marker": marker,
            "linestyle": dashes,
            "markerfacecolor": "none",
            "linewidth": 1,
        }
        if found:
            axes.plot(*zip(*found, strict=True), label=name, **kept)


def _roof(
    axes: Any, edge: tuple[float, float], slope: float, top: float, dashes: str, name: str
) -> None:
    corner = top / slope
    xs = sorted({edge[0], min(max(corner, edge[0]), edge[1]), edge[1]})
    axes.plot(xs, [min(slope * x, top) for x in xs], color=INK, linestyle=dashes, linewidth=1.4)
    if corner < edge[1]:
        axes.annotate(
            f"{name}, {top:.0f}",
            (edge[1], top),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    if dashes == "-":
        middle = (edge[0] * min(corner, edge[1])) ** 0.5
        text = {"textcoords": "offset points", "fontsize": 8, "ha": "right"}
        axes.annotate(f"memory, {slope:.0f} GB/s", (middle, slope * middle), (-8, 2), **text)


def _place(each: Timing) -> tuple[float, float]:
    """(operations per byte, 10^9 operations per second)."""
    facts = each["extra_info"]
    return facts["operations"] / facts["weight_bytes"], facts["operations"] / each["stats"][
        "median"
    ] / 1e9


def _matrix(each: Timing) -> tuple[int, int]:
    out, columns, _ = each["extra_info"]["shape"]
    return out, columns


def _probe(name: str) -> bool:
    return name in MEMORY or name in ROOFS
