"""The table of headline scores for papers: `leaderboard.tex`, with booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qbench.comparison.pairs import TIMES
from qbench.files.atomic import write_text
from qbench.outside_text import printable
from qbench.records import Record
from qbench.reports.headline import headlines, require
from qbench.reports.noise import noise_lines
from qbench.reports.repeats import without_repeats
from qbench.reports.tables import grid

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    TIMES: r"$\times$",
    "∞": r"$\infty$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`leaderboard.tex`."""
    return [write_text(folder / "leaderboard.tex", latex(records, folder))]


def latex(records: Sequence[Record], folder: Path | None = None) -> str:
    """A `tabular`, one row per cell, the best values bold. It needs the package booktabs."""
    require(records)
    records = without_repeats(records)
    columns, rows = grid(records, folder)
    headings = {headline.title: headline.heading for headline in headlines(records)}
    words = columns.index("method") + 1  # these columns hold words, which stand on the left
    alignment = "l" * words + "r" * (len(columns) - words)
    lines = [
        "% Needs \\usepackage{booktabs}.",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        _line([escaped(headings.get(column, column)) for column in columns]),
        "\\midrule",
    ]
    for row in rows:
        fields = []
        for entry in row:
            text = escaped(entry.whole)
            fields.append(f"\\textbf{{{text}}}" if entry.best else text)
        lines.append(_line(fields))
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {printable(line)}" for line in noise_lines(records)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """On one line, with LaTeX's own characters written so that they mean themselves."""
    return "".join(SPECIAL.get(character, character) for character in printable(text))


def _line(fields: Sequence[str]) -> str:
    return " & ".join(fields) + r" \\"
