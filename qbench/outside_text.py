"""Text from outside, such as names and reasons, made to mean itself in each medium.

A file name or a string of a GGUF may hold terminal escapes, line ends and marks that turn text
around; a cell of a CSV file may be a formula; Markdown has links and pictures. HTML is escaped by
jinja2, which leaves marks that cannot be seen as they are.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Of Unicode: control characters, marks without a width, halves of pairs, line and paragraph ends.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# What may be markup on GitHub: of underscores those at the edge of a word.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")


def take_any_text() -> None:
    """Let the output and the errors of this process take every text, wherever they go.

    A character that the encoding of a terminal lacks becomes `?`. What was closed before the start
    goes nowhere: the next file that is opened would have its number, and get what is printed.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "w", errors="replace"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def outlive_readers() -> None:
    """Let nothing depend on whether the output and the errors of this process are read to the end.

    What is printed once nobody reads it any more, as behind `| head`, goes nowhere.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        # Another in its place, as a test has, is nobody's pipe.
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            lines = stream.line_buffering or stream.write_through
            buffer = io.BufferedWriter(_Outliving(number, "w", closefd=False))
            text = io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=lines)
            setattr(sys, name, text)


class _Outliving(io.FileIO):
    """The file of a standard stream, which becomes the null device when its pipe is closed."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def printable(text: str) -> str:
    """On one line, with what cannot be seen written as an escape, such as \\x1b or \\n."""
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def csv_cell(text: str) -> str:
    """On one line, with an apostrophe in front where a spreadsheet would take it for a formula."""
    return f"'{printable(text)}" if text.startswith(_FORMULA) else printable(text)


def markdown(text: str) -> str:
    """On one line, without links, pictures, code, emphasis, formulas, table bars or HTML."""
    line = printable(" ".join(text.split()))
    escaped = _MARKUP.sub(r"\\\g<0>", line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table of Markdown, of fields that `markdown` has escaped.

    left: how many columns hold words, which stand on the left.
    """
    alignment = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, alignment, *rows))


def _visible(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return character.encode("unicode_escape").decode()
    return character
