"""The table of headline scores for papers: `leaderboard.tex`, with booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qbench.comparison.pairs import TIMES
from qbench.files.atomic import write_text
from qbench.outside_text import printable
from qbench.records import Record
from qbench.reports.headline import require
from qbench.reports.noise import noise_lines
from qbench.reports.repeats import without_repeats
from qbench.reports.tables import in_markup

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


def latex(records: Sequence[Record], folder: Path) -> str:
    """A `tabular`, one row per cell, the best values bold. It needs the package booktabs."""
    require(records)
    records = without_repeats(records)
    headings, rows, words = in_markup(
        records, folder, escaped, bold=lambda text: f"\\textbf{{{text}}}"
    )
    alignment = "l" * words + "r" * (len(headings) - words)
    lines = [
        "% Needs \\usepackage{booktabs}.",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        _line(headings),
        "\\midrule",
        *map(_line, rows),
    ]
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {printable(line)}" for line in noise_lines(records)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """On one line, with LaTeX's own characters written so that they mean themselves."""
    return "".join(SPECIAL.get(character, character) for character in printable(text))


def _line(fields: Sequence[str]) -> str:
    return " & ".join(fields) + r" \\"
