"""The lists, and how little they import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qbench.commands.listing import as_markdown, listing, with_methods_table
from qbench.errors import ConfigError

README = Path(__file__).resolve().parents[2] / "README.md"


def run(*words):
    """A command line in a process of its own, and the names of what it has imported at the end."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('IMPORTED', *sys.modules))\n"
        "from qbench.commands.main import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], capture_output=True, text=True
    )
    _, _, imported = result.stdout.partition("IMPORTED")
    return result, set(imported.split())


def test_the_methods_table_of_the_readme_is_written_in_place():
    table = as_markdown(*listing("methods"))
    readme = f"Before.\n\n{table}\nAfter, `a | b`.\n\n| other | table |\n"
    header, line, *rows = table.splitlines(keepends=True)
    old = "Before.\n\n" + header + line + rows[0].replace("uniform", "odd")
    old += "| gone |  |  |  |  |  |\n\nAfter, `a | b`.\n\n| other | table |\n"
    assert with_methods_table(old) == readme == with_methods_table(readme)
    assert with_methods_table(f"{header}{line}") == table
    with pytest.raises(ConfigError, match="no table of methods"):
        with_methods_table("# qbench\n")


def test_the_module_writes_the_file(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(README.read_text().replace("| gptq | uniform |", "| gptq | old |"))
    subprocess.run([sys.executable, "-P", "-m", "qbench.commands.listing", path], check=True)
    assert path.read_text() == with_methods_table(README.read_text())


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--help"], 0, ""),
        (["list", "methods"], 0, ""),
        (["list", "sweeps"], 0, ""),
        (["run", "--methods", "gtpq"], 2, "unknown method 'gtpq'. Did you mean 'gptq'?"),
        (["run", "--sweep", "uniquanf"], 2, "unknown sweep 'uniquanf'. Did you mean"),
        (["run", "--preset", "quik"], 2, "unknown preset 'quik'. Did you mean 'quick'?"),
        (["run", "--set", "gptq.dmap=1"], 2, "unknown parameter of method 'gptq' 'dmap'."),
        (["quantize", "--method", "gtpq", "--bits", "3", "-o", "x"], 2, "unknown method 'gtpq'."),
    ],
)
def test_help_lists_and_typing_errors_import_nothing_heavy(words, code, message):
    result, imported = run(*words)
    assert result.returncode == code and message in result.stderr
    assert "qbench.commands.main" in imported
    assert not imported & {"torch", "transformers", "numpy", "datasets", "lm_eval"}


def test_what_one_has_to_type_is_whole_in_a_pipe():
    for what in ("methods", "presets", "kernels"):
        _, rows = listing(what)
        result, _ = run("list", what)
        for row in rows:
            for word in " ".join(row).split():
                assert word in result.stdout, (what, word)


def test_lines_within_a_cell_do_not_end_a_markdown_row():
    table = as_markdown(*listing("presets"))
    assert all(line.startswith("| ") and line.endswith(" |") for line in table.splitlines())
