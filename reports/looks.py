"""The colours of pictures, and the colour, marker and dashes of each line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.comparison.pairs import is_unquantized
from qbench.declarations import Declaration
from qbench.records import Record
from qbench.registry import declarations, external
from qbench.reports.cell_names import names, ordered

INK = "#1f2328"
MUTED = "#59636e"
RULE = "#d8dee4"
PAPER = "#ffffff"
# Chosen so that the least difference between two of them is as large as could be with any of the
# three colour blindnesses; beside each what a dark page puts instead, chosen likewise. In the order
# of the methods' names, those of the default grid differ most.
COLOURS = {
    "#0072b2": "#8da8cb",
    "#999933": "#bdba69",
    "#e69f00": "#e19700",
    "#b66dff": "#9c77bc",
    "#6db6ff": "#51abfb",
    "#b2182b": "#f1484e",
    "#661100": "#cf998a",
    "#cc6677": "#ac797f",
    "#882255": "#ffc8dd",
    "#cc79a7": "#c3689c",
    "#490092": "#ad5efd",
    "#d55e00": "#ce6b2d",
    "#994f00": "#efbc97",
}
MARKERS = "osD^vPXph<>"  # 11, coprime with the 13 colours: 143 pairs before one comes again
DASHES = ("-", "--", ":", "-.")
Look = dict[str, Any]  # keywords of matplotlib for a line


def looks(records: Sequence[Record]) -> dict[str, Look]:
    """Colour, marker and dashes of every line by its name.

    The colour is the method's, the same in all pictures; its group sizes and parameters differ in
    marker and dashes.
    """
    called = names(records)
    variants: dict[str, list[str]] = {}  # the lines of each method, in the order of reports
    for record in ordered(records):
        if not is_unquantized(record):
            lines = variants.setdefault(record.cell.method, [])
            if called[record.id] not in lines:
                lines.append(called[record.id])
    colours = list(COLOURS)
    styles = {}
    methods = dict.fromkeys([*_known_methods(), *variants])
    # Markers turn with another period than colours, so that a pair comes again after 143 methods.
    for k, method in enumerate(methods):
        for variant, label in enumerate(variants.get(method, [])):
            styles[label] = {
                "color": colours[k % len(colours)],
                "marker": MARKERS[(k + variant) % len(MARKERS)],
                "linestyle": DASHES[(variant + 2 * (k // len(colours))) % len(DASHES)],
                "linewidth": 1.6,
                "markersize": 6.5,
                "markerfacecolor": "none",
                "markeredgewidth": 1.5,
            }
    return styles


def _known_methods() -> list[str]:
    """Our own methods, then those of other packages: a method's place does not depend on a run."""
    own = []
    for name, entry in declarations().items():
        ours = isinstance(entry, Declaration) and entry.module.startswith("qbench.methods.")
        if ours and name != "none":  # which is the dashed line
            own.append(name)
    return [*sorted(own), *sorted(external())]
