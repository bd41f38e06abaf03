"""Tables on a screen and in a log, of which no cell ever loses a digit or a letter.

In a log or a pipe lines are as long as they must be. Where a terminal is too narrow, sentences are
wrapped between words, and if that is not enough, a row becomes lines: one for each of its cells.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.text import Text

from qbench.commands.options import out, say
from qbench.outside_text import printable

GAP = "  "  # between two columns
LEAST = 20  # characters that a column of sentences keeps

# The cells of a row, or a line of its own across the table.
TableRow = Sequence[str] | str


def show_table(
    headings: Sequence[str],
    rows: Sequence[TableRow],
    *,
    right: Container[str] = (),
    sentences: Container[str] = (),
) -> None:
    """Print a table; a cell may have several lines.

    right: the columns that stand on the right, as numbers do. sentences: those that may be wrapped.
    """
    cells = [headings, *(row for row in rows if not isinstance(row, str))]
    widths = widths_of(cells)
    if out.is_terminal:
        wrapped = [name in sentences for name in headings]
        fitting = _fitted(widths, wrapped, out.width - len(GAP) * (len(widths) - 1))
        if fitting is None:
            _show_stacked(headings, rows)
            return
        widths = fitting
    on_the_right = [name in right for name in headings]
    _show_row(headings, widths, on_the_right, "bold")
    for row in rows:
        if isinstance(row, str):
            say(row)
        else:
            _show_row(row, widths, on_the_right)


def widths_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """How many characters of the screen each column takes at most."""
    columns = zip(*rows, strict=True)
    return [max(cell_len(line) for cell in column for line in _lines(cell)) for column in columns]


def aligned(
    fields: Sequence[str], widths: Sequence[int], on_the_right: Sequence[bool] | None = None
) -> str:
    """One line of fields below those of other lines."""
    padded = []
    sides = on_the_right or [False] * len(fields)
    for field, width, is_right in zip(fields, widths, sides, strict=True):
        space = " " * (width - cell_len(field))
        padded.append(space + field if is_right else field + space)
    return GAP.join(padded).rstrip()


def _show_row(
    row: Sequence[str], widths: Sequence[int], on_the_right: Sequence[bool], style: str = ""
) -> None:
    columns = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    for fields in zip_longest(*columns, fillvalue=""):
        out.print(Text(aligned(fields, widths, on_the_right), style=style), soft_wrap=True)


def _show_stacked(headings: Sequence[str], rows: Sequence[TableRow]) -> None:
    """A row as lines: its first cell, and below it the others that are not empty."""
    width = max(map(cell_len, headings))
    for row in rows:
        if isinstance(row, str):
            say(row)
            continue
        say(" ".join(_lines(row[0])))
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            if cell:
                space = " " * (width - cell_len(heading))
                say(f"{GAP}{heading}{space}{GAP}{' '.join(_lines(cell))}")


def _fitted(widths: Sequence[int], wrapped: Sequence[bool], room: int) -> list[int] | None:
    """The widths with which a table fits, narrower where cells may be wrapped; None for none."""
    fitted = list(widths)
    left = room - sum(width for width, may in zip(widths, wrapped, strict=True) if not may)
    narrow = sorted((width, k) for k, width in enumerate(widths) if wrapped[k])
    for place, (width, k) in enumerate(narrow):  # what needs less leaves more to the others
        share = left // (len(narrow) - place)
        if share < min(width, LEAST):
            return None
        fitted[k] = min(width, share)
        left -= fitted[k]
    return fitted if left >= 0 else None


def _lines(cell: str) -> list[str]:
    return [printable(line) for line in cell.split("\n")]


def _wrapped(cell: str, width: int) -> list[str]:
    """The lines of a cell in so many characters; a word is cut in two where it has more."""
    lines: list[str] = []
    for line in _lines(cell):
        if cell_len(line) <= width:
            lines.append(line)
        else:
            parts = Text(line).wrap(out, width, overflow="fold")
            lines += [part.plain.rstrip() for part in parts]
    return lines
