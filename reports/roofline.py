"""A roofline from stored timings: operations per second against operations per byte of the weight.

The slope is the memory: a product that only reads its weight lies on it. The ceiling is the rate of
dense products from the cache, above which lookups in tables can be, as they do not multiply. Both
took turns with the points. Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful
visual performance model", doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from qbench.errors import DataError
from qbench.files.atomic import write_bytes
from qbench.reports.looks import COLOURS, INK, MARKERS, MUTED, Look
from qbench.reports.plots import STYLE, png

MEMORY = ("read", "copy")  # the probe of memory; `copy` is that of older files from GPUs
ROOFS = {"multiply bf16": "-", "multiply fp32": "--"}  # the probes of dense products, and dashes
DENSE = ("dense bf16", "dense fp32")

# One entry of `benchmarks` in pytest-benchmark's JSON: a kernel on a matrix with a batch.
Timing = Mapping[str, Any]


def roofline(stored: Mapping[str, Any]) -> Figure:
    """A panel per matrix, in which a line joins the batches of a kernel.

    stored: the content of a file of `qbench latency --json`. DataError where it holds no timings of
    products.
    """
    timings = []
    for timing in stored.get("benchmarks", ()):
        if "operations" in timing.get("extra_info", {}):
            timings.append(timing)
    if not timings:
        raise DataError(
            "there are no timings of products here; write some with `qbench latency --json FILE`"
        )
    matrices = list(dict.fromkeys(_matrix(timing) for timing in timings))
    looks = _looks(timings)
    with rc_context(STYLE):
        size = (5.6 * len(matrices) + 2.2, 4.8)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
        for axes, matrix in zip(panels, matrices, strict=True):
            own = [timing for timing in timings if _matrix(timing) == matrix]
            _panel(axes, matrix, own, looks)
        panels[0].set_ylabel("operations per second, 10⁹")
        # One legend for all panels: a name that several have appears once.
        handles: dict[str, Any] = {}
        for axes in panels:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles[label] = handle
        figure.legend(
            handles=list(handles.values()), loc="outside right upper", fontsize=8, frameon=False
        )
        machine = stored["machine_info"]["hardware"]["cpu"]
        device = timings[0]["extra_info"]["device"]
        note = f"{device}, {machine}. Medians; weights come from memory, not from a cache."
        figure.supxlabel(note, fontsize=8, color=MUTED, ha="left", x=0.012)
    return figure


def write_roofline(stored: Mapping[str, Any], path: Path) -> Path:
    """Write the picture of `roofline` as a PNG, whole or not at all."""
    return write_bytes(path, png(roofline(stored)))


def _looks(timings: Sequence[Timing]) -> dict[str, Look]:
    """How the line of each kernel is drawn, by its name; dense products are grey."""
    colours = list(COLOURS)
    names = dict.fromkeys(timing["name"] for timing in timings)
    kernels = [name for name in names if name not in MEMORY and name not in ROOFS]  # no probes
    looks = {}
    for k, name in enumerate(kernels):
        is_dense = name in DENSE
        looks[name] = {
            "color": MUTED if is_dense else colours[k % len(colours)],
            "marker": "x" if is_dense else MARKERS[k % len(MARKERS)],
            "linestyle": "--" if name.endswith("fp32") else "-",
            "markerfacecolor": "none",
            "linewidth": 1,
        }
    return looks


def _panel(
    axes: Any, matrix: tuple[int, int], timings: Sequence[Timing], looks: Mapping[str, Look]
) -> None:
    """The kernels and roofs of one matrix (out, in)."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{matrix[0]} x {matrix[1]}", fontsize=10, loc="left")
    axes.set_xlabel("operations per byte of the weight")
    points = {name: sorted(_points(timings, name)) for name in looks}
    intensities = [x for line in points.values() for x, _ in line]
    reach = (1.0, 10.0)
    if intensities:
        reach = (min(intensities) / 6, max(intensities) * 2)
    _roofs(axes, reach, timings)
    for name, line in points.items():
        if line:
            x, y = zip(*line, strict=True)
            axes.plot(x, y, label=name, **looks[name])


def _roofs(axes: Any, reach: tuple[float, float], timings: Sequence[Timing]) -> None:
    """Every probe of dense products as a ceiling over the slope of the memory's probe."""
    slopes = []  # GB/s
    for timing in timings:
        if timing["name"] in MEMORY:
            slopes.append(timing["extra_info"]["bytes_per_second"] / 1e9)
    if not slopes:
        return
    for name, dashes in ROOFS.items():
        ceilings = [y for _, y in _points(timings, name)]
        if ceilings:
            label = name.removeprefix("multiply ")
            _roof(axes, reach, max(slopes), max(ceilings), dashes, label)


def _roof(
    axes: Any, reach: tuple[float, float], slope: float, ceiling: float, dashes: str, name: str
) -> None:
    """min(slope * x, ceiling). reach: the first and last x. slope: GB/s. ceiling: 10^9 op/s."""
    first, last = reach
    corner = ceiling / slope  # operations per byte where memory and arithmetic take equally long
    xs = sorted({first, min(max(corner, first), last), last})
    ys = [min(slope * x, ceiling) for x in xs]
    axes.plot(xs, ys, color=INK, linestyle=dashes, linewidth=1.4)
    text = {"textcoords": "offset points", "fontsize": 8, "ha": "right"}
    if corner < last:
        axes.annotate(f"{name}, {ceiling:.0f}", (last, ceiling), (-2, 3), **text)
    if dashes == "-":  # the slope is the same under both ceilings: it gets one label
        middle = (first * min(corner, last)) ** 0.5  # halfway on a logarithmic axis
        axes.annotate(f"memory, {slope:.0f} GB/s", (middle, slope * middle), (-8, 2), **text)


def _points(timings: Sequence[Timing], name: str) -> list[tuple[float, float]]:
    """(operations per byte, 10^9 operations per second) of each batch of a kernel or probe."""
    points = []
    for timing in timings:
        if timing["name"] == name:
            facts = timing["extra_info"]
            seconds = timing["stats"]["median"]
            x = facts["operations"] / facts["weight_bytes"]
            points.append((x, facts["operations"] / seconds / 1e9))
    return points


def _matrix(timing: Timing) -> tuple[int, int]:
    """(out, in) of the weight."""
    out, columns, _ = timing["extra_info"]["shape"]
    return out, columns
