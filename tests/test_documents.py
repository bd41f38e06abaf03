"""What the documents name exists: paths, make targets, subcommands and their options."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from qbench.commands.main import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "docs/gate.md",
    "docs/serving.md",
    "docs/cluster.md",
    "docs/peers.md",
)
ROOMS = ("qbench/", "methods/", "tasks/", "kernels/", "reports/", "tests/", "benchmarks/")


def code(document: str) -> list[str]:
    """The lines of code blocks and what stands in backticks, without comments."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    pieces = re.findall(r"`([^`]+)`", prose)
    for block in blocks:
        pieces += block.splitlines()
    return [re.sub(r"\s#.*", "", piece) for piece in pieces]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document):
    paths = [word for piece in code(document) for word in piece.split()]
    paths += re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text())
    paths = [path for path in paths if path.startswith(ROOMS) and "NAME" not in path]
    assert paths
    assert [path for path in paths if not (ROOT / path.split(":")[0]).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(code(document)))
    assert named
    assert set(named) - set(targets) == set()


def test_a_target_takes_what_make_help_says_that_it_takes():
    rule = re.compile(r"^([\w-]+):[^\n]*##([^\n]*)\n((?:\t[^\n]*\n)*)", re.M)
    promised = {}
    for target, about, recipe in rule.findall((ROOT / "Makefile").read_text()):
        for name in re.findall(r"\b[A-Z]{3,}\b", " ".join(re.findall(r"\([A-Z][^)]*\)", about))):
            promised[f"{target} {name}"] = re.search(rf"\b{name}\b", recipe) is not None
    assert {"bench OUT", "regress OUT", "regress BITS", "gate MODEL"} <= promised.keys()
    assert [name for name, is_taken in promised.items() if not is_taken] == []


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        ((), ""),
        (("OUT=x y", "BITS=3,4"), " --bits 3,4 --out 'x y'"),
        (("OUT=it's",), """ --out 'it'"'"'s'"""),
    ],
)
def test_regress_passes_on_what_is_typed(typed, passed):
    words = ["make", "--dry-run", "--old-file", ".venv/.ready", "regress", "METHOD=m.py", *typed]
    variables = {name: value for name, value in os.environ.items() if name not in ("OUT", "BITS")}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
    command = shlex.join(shlex.split(done.stdout.replace("\\\n", "")))
    start, end = " regress m.py --base gptq --model smollm2-135m", " --markdown runs/regress.md"
    assert f"{start}{passed}{end}" in command


@pytest.mark.parametrize("document", DOCUMENTS)
def test_subcommands_and_options_exist(document):
    commands = typer.main.get_command(app).commands
    unknown = []
    for piece in code(document):
        for name, arguments in re.findall(r"\bqbench ([a-z]+)\b([^&;]*)", piece):
            if name not in commands:
                unknown.append(name)
                continue
            options = {"--help"}
            for parameter in commands[name].params:
                options |= {*parameter.opts, *parameter.secondary_opts}
            named = re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)
            unknown += [f"{name} {option}" for option in named if option not in options]
    assert unknown == []
