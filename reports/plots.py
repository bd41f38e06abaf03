"""Pictures from records: quality against measured bits per weight, size and latency.

They are made by the object API of matplotlib alone: no global state of figures.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text

from qbench.comparison.pairs import Pairs, pairs_of
from qbench.files.atomic import write_bytes
from qbench.outside_text import printable, printable_lines
from qbench.records import Record, digest
from qbench.reports.axes import MARKS, panel
from qbench.reports.cell_names import ordered
from qbench.reports.headline import Headline, headlines
from qbench.reports.looks import INK, MUTED, PAPER, RULE, Look, looks
from qbench.reports.noise import noise_floors
from qbench.reports.points import BITS, Cost, unbroken
from qbench.reports.repeats import without_repeats

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a $
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": PAPER,
    "grid.color": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: light, found by a search, read aloud
    "svg.hashsalt": "qbench",  # so that the same records give the same file
}
SVG = "{http://www.w3.org/2000/svg}"
USE = f"{SVG}use"
ElementTree.register_namespace("", SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_NOTE_CHARACTERS = 90  # of the note below that fit the width of one panel
_LEGEND_CHARACTERS = 14  # of a legend that fit an inch
_HANDLE_CHARACTERS = 12  # that a line with its marker takes, and the gaps around it
_LEGEND_LINE_INCHES = 0.23


def headline_figure(
    records: Sequence[Record],
    headline: Headline,
    model: str,
    cost: Cost = BITS,
    folder: Path | None = None,
) -> Figure:
    """One score of one model against measured bits per weight, or another cost.

    headline: one of `headlines`. folder: of the run, where the items lie; without it there are no
    differences.
    """
    return _figure(records, [headline], model, pairs_of(records, folder), cost)


def first_figure(records: Sequence[Record], model: str, folder: Path | None = None) -> Figure:
    """The picture people look at first: perplexity and divergence, else the first headline.

    folder: as of `headline_figure`.
    """
    mine = [record for record in records if record.cell.model == model]
    return _figure(records, leading(mine), model, pairs_of(records, folder))


def leading(records: Sequence[Record]) -> list[Headline]:
    """Perplexity and mean divergence if both are there, else the first headline score if any is."""
    scores = headlines(records)
    perplexities = [headline for headline in scores if headline.nature == "perplexity"]
    divergences = [headline for headline in scores if headline.is_divergence]
    if perplexities and divergences:
        return [perplexities[0], divergences[0]]
    return scores[:1]


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`quality.png`, and `quality-MODEL.png` for every further model."""
    records = without_repeats(records)
    paths = []
    for index, model in enumerate(models(records)):
        paths.append(write_quality(records, folder, model, first=index == 0))
    return paths


def write_quality(records: Sequence[Record], folder: Path, model: str, first: bool) -> Path:
    """`quality.png`, or `quality-MODEL.png` where this is not the first model."""
    name = "quality.png" if first else f"quality-{distinct_slug(model)}.png"
    return write_bytes(folder / name, png(first_figure(records, model, folder)))


def models(records: Sequence[Record]) -> list[str]:
    """The models, in the order of the tables."""
    return list(dict.fromkeys(record.cell.model for record in ordered(records)))


def slug(text: str) -> str:
    """A file name of letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "unnamed"


def distinct_slug(text: str) -> str:
    """The same, with four digits of its hash where it is not the text itself.

    Folders such as `../m` and `./m` have one slug.
    """
    short = slug(text)
    return short if short == text else f"{short}-{digest(text)[:4]}"


def png(figure: Figure) -> bytes:
    """The figure as a PNG without time stamps; same figure, same bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        printed(figure).savefig(buffer, format="png", dpi=180, metadata={"Software": "qbench"})
    return buffer.getvalue()


def printed(figure: Figure) -> Figure:
    """The figure, in whose texts what cannot be seen is written out, in place."""
    for text in figure.findobj(Text):
        shown = printable_lines(text.get_text())
        if shown != text.get_text():
            text.set_text(shown)
    return figure


def svg(figure: Figure, prefix: str = "", cells: str | None = None) -> str:
    """The figure as an `<svg>` element without time stamps or foreign addresses.

    Same records, same text. Each point has its words as a title, which browsers show. prefix: of
    the names of its parts, which must differ between the pictures of one page. cells: the folder
    of the pages that the points link to, None for no links.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(STYLE):
        printed(figure).savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    root = ElementTree.fromstring(element)
    lines = [line for axes in figure.axes for line in axes.lines]
    words = {line.get_gid() or "": str(line.get_label()).split("\n") for line in lines}
    for parent in list(root.iter()):
        name = parent.get("id", "")
        if name.startswith(MARKS):
            del parent.attrib["id"]
            _name_points(parent, name.removeprefix(MARKS), words[name], cells)
    element = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", element)


def _name_points(
    marks: ElementTree.Element, names: str, words: list[str], cells: str | None
) -> None:
    """Give each mark of a line its title and its link, in place.

    names: of the cells, after `MARKS`; words: of the titles; both in the order of the points, which
    is that of the marks.
    """
    drawn = [parent for parent in marks.iter() if parent.find(USE) is not None]
    uses = [(parent, use) for parent in drawn for use in parent.findall(USE)]
    for (parent, use), cell, text in zip(uses, names.split(), words, strict=True):
        point = ElementTree.Element(f"{SVG}g", {"id": f"point-{cell}"})
        text = printable(text)
        ElementTree.SubElement(point, f"{SVG}title").text = text
        point.append(use)
        named = point
        if cells is not None:
            href = f"{cells}/{cell}.html"
            named = ElementTree.Element(f"{SVG}a", {"href": href, "aria-label": text})
            named.append(point)
        parent[list(parent).index(use)] = named


def _figure(
    records: Sequence[Record],
    panels: Sequence[Headline],
    model: str,
    pairs: Pairs,
    cost: Cost = BITS,
) -> Figure:
    """A panel per score, above them the legend, below them what was not drawn and why."""
    mine = [record for record in ordered(records) if record.cell.model == model]
    with rc_context(STYLE):
        width = 6.2 if len(panels) < 2 else 10.6
        figure = Figure(figsize=(width, 5.0), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        if not panels:
            text = f"{model}\nno scores: every cell failed or was skipped"
            figure.text(0.5, 0.5, text, ha="center", va="center")
            return figure
        styles = looks(records)
        notes = [f"{model}. Grey: no other cell is better there."]
        drawn: set[str] = set()
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, headline in zip(row, panels, strict=True):
            drawn |= panel(axes, mine, headline, styles, notes, pairs, cost)
            notes += _floors([record for record in mine if headline.of(record)], headline)
        lost = [unbroken(record.cell.label) for record in mine if record.status != "ok"]
        if lost:
            notes.append(f"Failed or skipped: {', '.join(lost)}.")
        _legend(figure, {name: styles[name] for name in styles if name in drawn})
        note = textwrap.fill(
            " ".join(dict.fromkeys(notes)),
            _NOTE_CHARACTERS * len(panels),
            max_lines=5,
            placeholder=" ...",
        )
        figure.supxlabel(note, fontsize=8, color=MUTED, ha="left", x=0.012)
    return figure


def _floors(shown: Sequence[Record], headline: Headline) -> list[str]:
    """Which divergences of a panel are rounding; nothing of other scores. shown: its cells."""
    if not headline.is_divergence:
        return []
    floors = [floor for floor in noise_floors(shown) if floor.task == headline.task]
    return [f"{floor.text} ({floor.way})." if floor.way else f"{floor.text}." for floor in floors]


def _legend(figure: Figure, styles: dict[str, Look]) -> None:
    """A legend in as many columns as fit, for which the figure grows; nothing without lines."""
    if not styles:
        return
    handles = [Line2D([], [], label=name, **look) for name, look in styles.items()]
    columns = _columns(list(styles), int(_LEGEND_CHARACTERS * figure.get_figwidth()))
    further_lines = -(-len(handles) // columns) - 1  # rounded up
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE_INCHES * further_lines)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)


def _columns(labels: Sequence[str], width: int) -> int:
    """The most columns of a legend, filled column by column, in this many characters."""
    sizes = [len(label) + _HANDLE_CHARACTERS for label in labels]
    for columns in range(len(sizes), 1, -1):
        rows, longer = divmod(len(sizes), columns)  # matplotlib has the longer columns first
        starts = [column * rows + min(column, longer) for column in range(columns + 1)]
        if sum(max(sizes[start:end]) for start, end in pairwise(starts)) <= width:
            return columns
    return 1
