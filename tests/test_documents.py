"""What the documents name exists: paths, make targets, subcommands and their options."""

from __future__ import annotations

import re
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
