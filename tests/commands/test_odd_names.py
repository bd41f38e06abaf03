"""Names that no file can have, at every place of a command where one is named."""

from __future__ import annotations

import os

import pytest

NAMES = {
    "long": "y" * 3000,
    "deep": "/".join(["a" * 200] * 30),
    "null": "a\0b",
    "half a character": "\ud800x",
    "nobody's": "~nobody-of-that-name/x",
    "empty": "",
    "a circle": "circle",
    "a pipe": "pipe",
}
RUN = ["run", "--methods", "none", "--tasks", "wikitext", "--dry-run"]
PLACES = {
    "model": [*RUN, "--model", "{}"],
    "data": [*RUN, "--data", "{}"],
    "plugin": [*RUN, "--plugin", "{}"],
    "sweep": [*RUN, "--sweep", "{}"],
    "config": ["run", "--config", "{}"],
    "eval": ["eval", "{}"],
    "inspect": ["inspect", "{}"],
    "verify": ["verify", "{}"],
    "report": ["report", "{}"],
    "gc": ["gc", "{}"],
    "export": ["export", "{}", "--to", "dense", "-o", "x"],
    "quantize": ["quantize", "--model", "{}", "--method", "rtn", "--bits", "3", "-o", "x"],
    "compare": ["compare", "{}", "{}"],
    "check": ["check", "{}"],
    "regress": ["regress", "{}", "--base", "gptq"],
    "base": ["regress", "gptq", "--base", "{}"],
    "baseline": ["baseline", "save", "{}", "name"],
    "tables": ["data", "list", "--data", "{}"],
    "latency": ["latency", "--end-to-end", "{}"],
}


SLOW = ("regress", "base")  # which start processes


@pytest.mark.parametrize(
    "place", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in PLACES]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_misuse_in_one_sentence(command, place, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    words = [word.format(NAMES[name]) for word in PLACES[place]]
    code, _, error = command(*words)
    assert code == 2, error
    assert error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "pipe"]
