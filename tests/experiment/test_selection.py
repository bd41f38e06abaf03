"""Patterns choose the cells of a plan."""

from __future__ import annotations

import pytest

from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.experiment.selection import select
from qbench.records import Cell


def cell(method, bits, **params):
    scheme = None if bits is None else Scheme(bits, 64)
    return Cell(
        model="m",
        revision="r",
        method=method,
        params=params,
        source="s",
        scheme=scheme,
        calibration=None,
        tasks=(),
        dtype="float32",
        seed=0,
    )


CELLS = (
    cell("none", None),
    cell("rtn", 2),
    cell("rtn", 3),
    cell("rtn-h", 3),
    cell("gptq", 3, damp=0.1),
    cell("gptq", 13),
)


def chosen(**changes):
    return [each.label for each in select(Grid(**changes), CELLS)]


@pytest.mark.parametrize(
    "changes, labels",
    [
        ({}, [each.label for each in CELLS]),
        ({"only": "rtn"}, ["rtn 2b g64", "rtn 3b g64"]),
        ({"only": ("rtn*", "none")}, ["none", "rtn 2b g64", "rtn 3b g64", "rtn-h 3b g64"]),
        ({"only": "3b"}, ["rtn 3b g64", "rtn-h 3b g64", "gptq 3b g64 damp=0.1"]),
        ({"only": "gptq 3b*"}, ["gptq 3b g64 damp=0.1"]),
        ({"only": "gptq 3b"}, None),
        ({"only": "3b", "skip": "rtn*"}, ["gptq 3b g64 damp=0.1"]),
        ({"only": "rtn", "skip": "[23]b"}, None),
        ({"only": CELLS[2].id}, ["rtn 3b g64"]),
        ({"skip": "*b", "max_cells": 3}, ["none"]),
        ({"max_cells": 2, "skip": "none"}, ["rtn 2b g64", "rtn 3b g64"]),
    ],
)
def test_patterns_choose(changes, labels):
    if labels is None:
        with pytest.raises(ConfigError, match="none, rtn 2b g64, rtn 3b g64"):
            chosen(**changes)
        return
    assert chosen(**changes) == labels


def test_a_pattern_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="--skip 'GPTQ' matches no cell; the cells are none, rtn"):
        chosen(skip="GPTQ")
