"""Names and reasons from outside do nothing: not on a terminal, in a CSV file, in Markdown."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from fresh_python import run_python
from qbench.errors import StoreError
from qbench.outside_text import csv_cell, markdown, printable, printable_lines

FORGED = "x\nok    model.safetensors"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("model-3b (g64) ≥ ü 漢", "model-3b (g64) ≥ ü 漢"),
        ("\x1b[2J\x1b[31mred", "\\x1b[2J\\x1b[31mred"),
        (FORGED, "x\\nok    model.safetensors"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("half \ud800 of a pair", "half \\ud800 of a pair"),
        ("a\u2028b\x9bc\rd", "a\\u2028b\\x9bc\\rd"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_an_error_that_quotes_a_damaged_file_is_one_line():
    message = str(StoreError(f"file {FORGED!s} \x1b]0;title\x07 is damaged"))
    assert "\n" not in message and "\x1b" not in message and "\\x1b]0;title\\x07" in message


def test_the_console_shows_one_line_for_a_string():
    from qbench.commands.options import _Console

    stream = io.StringIO()
    _Console(file=stream, width=200).print(f"FAIL  {FORGED}\x1b[2J", markup=False)
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_is_a_formula(text):
    assert csv_cell(text) == f"'{printable(text)}"
    assert csv_cell(f"a{text}") == printable(f"a{text}")


def test_lines_stay_lines():
    assert printable_lines("a\n\x1bb\u2028\n") == "a\n\\x1bb\\u2028\n"


@pytest.mark.parametrize(
    "text",
    [
        "[click](javascript:alert(1))",
        "![](https://example.org/pixel.png)",
        "`code` **bold** <b>html</b> a|b",
        "<script>alert(1)</script>",
        "line\n# heading\n- item",
        "\\[escaped](x)",
        "_under_ and __both__, ~one~ or ~~two~~ tildes, _a_b_",
    ],
)
def test_markdown_shows_the_text_itself(text):
    """By a reader of Markdown: a paragraph of plain text, and that text is what was written."""
    rendered = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(text))
    (content,) = [token for token in rendered if token.type == "inline"]
    assert {token.type for token in content.children} <= {"text", "text_special"}
    assert "".join(token.content for token in content.children) == " ".join(text.split())


def test_markdown_leaves_ordinary_names_as_they_are():
    for name in ("smollm2_135m", "top1_agreement", "mini-divergence kl_mean"):
        assert markdown(name) == name
    # Not known to the reader of the test above: GitHub takes one tilde, and formulas.
    assert markdown("~x~ $x$ _x") == "\\~x\\~ \\$x\\$ \\_x"


PRINTS = """
import sys
from qbench.outside_text import take_any_text
take_any_text()
with open(sys.argv[1], "w") as file:
    print("2 \\u00d7 \\u2500 \\udcff", flush=True)
    print("2 \\u00d7", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_characters_gets_the_others(tmp_path, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = run_python("-c", PRINTS, tmp_path / "file", env=environment, encoding=encoding)
    assert done.returncode == 0 and done.stdout.startswith("2 "), done.stderr
    assert done.stderr == ("2 ?\n" if encoding == "ascii" else "2 \u00d7\n")


def test_what_is_printed_where_the_output_was_closed_goes_into_no_file(tmp_path):
    script = f"exec {sys.executable} -P -c '{PRINTS}' {tmp_path / 'file'} >&- 2>&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "file").read_bytes() == b""
