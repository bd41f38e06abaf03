"""Patterns choose the cells of a plan."""

from __future__ import annotations

import pytest

from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.experiment.selection import select
from qbench.records import CalibrationSpec, Cell, labels
from qbench.scheme import LayerRule


def cell(method, bits, calibration=None, seed=0, **params):
    scheme = None if bits is None else Scheme(bits, 64)
    return Cell(
        model="m",
        revision="r",
        method=method,
        params=params,
        source="s",
        scheme=scheme,
        calibration=calibration,
        tasks=(),
        dtype="float32",
        seed=seed,
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


def drawn(bits, samples, seed=0):
    sample = CalibrationSpec(data="c4", sha256="c", samples=samples, length=32, dtype="float32")
    return cell("gptq", bits, calibration=sample, seed=seed)


def test_labels_say_what_cells_of_one_label_were_calibrated_with():
    alone, few, many = drawn(4, 4), drawn(3, 4), drawn(3, 8)
    first, second = drawn(2, 8), drawn(2, 8, seed=1)
    told = labels([cell("rtn", 3), alone, few, many, first, second])
    assert list(told.values()) == [
        "rtn 3b g64",
        "gptq 4b g64",
        "gptq 3b g64 c4:4x32",
        "gptq 3b g64 c4:8x32",
        "gptq 2b g64 seed=0",
        "gptq 2b g64 seed=1",
    ]
    assert labels([few, drawn(3, 8, seed=1)])[few.id] == "gptq 3b g64 c4:4x32 seed=0"


@pytest.mark.parametrize(
    "changes, samples",
    [
        ({"only": "gptq 3b g64 c4:8x32"}, [8]),
        ({"only": "*:4x32"}, [4]),
        ({"skip": "*:4x32"}, [8]),
        ({"only": "gptq 3b g64"}, [4, 8]),
    ],
)
def test_a_pattern_names_one_of_several_calibrations(changes, samples):
    cells = select(Grid(**changes), [drawn(3, 4), drawn(3, 8)])
    assert [each.calibration.samples for each in cells] == samples


def test_a_label_with_a_rule_for_some_letters_names_its_cell():
    rules = (LayerRule("model.layers.[01].*", 8),)
    plain = cell("rtn", 3)
    mixed = plain.model_copy(update={"scheme": Scheme(3, 64, rules=rules)})
    assert mixed.label == "rtn 3b g64 model.layers.[01].*=8"
    assert select(Grid(only=mixed.label), [plain, mixed]) == (mixed,)
