"""What a task hands back is held against its declaration; what it may not be has a sentence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qbench.comparison.cell_lint import Evaluated, lint_cell
from qbench.errors import ConfigError
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Outcome
from qbench.tasks.outcome import checked
from qbench.tasks.registry import get_task
from synthetic_records import record

TASK = get_task("arc_easy")
SPEC = TaskSpec(name="arc_easy", data="ours", sha256="e" * 64)
SCORE = Score(task="arc_easy", metric="acc", value=0.5, stderr=None, n=2, higher_is_better=True)
ROWS = [{"doc_id": index, "filter": "none", "acc": index} for index in range(2)]


def score(**changes: Any) -> Score:
    return SCORE.model_copy(update=changes)


def test_numbers_of_numpy_become_pythons_own() -> None:
    rows = [{"doc_id": np.int64(4), "filter": "none", "acc": np.float32(1), "all": np.ones(2)}]
    facts = {"longest": np.int64(3), "means": {"a": (np.float32(0.5), 1)}}
    found = checked(TASK, SPEC, Outcome((SCORE,), rows, facts))
    assert found.samples == [{"doc_id": 4, "filter": "none", "acc": 1.0, "all": [1.0, 1.0]}]
    assert type(found.samples[0]["acc"]) is float
    assert found.facts == {"longest": 3, "means": {"a": [0.5, 1]}}


@pytest.mark.parametrize(
    ("scores", "rows", "facts", "words"),
    [
        ([score(higher_is_better=False)], ROWS, {}, "declares that a higher one is better"),
        ([score(value=41.5)], ROWS, {}, "has the value 41.5 for its score 'acc', whose unit is %"),
        ([score(value=math.nan)], ROWS, {}, "has the value nan for its score 'acc'"),
        ([score(task="ours")], ROWS, {}, "has a score 'acc' of the task 'ours'"),
        ([SCORE], ROWS, {"skipped": math.nan}, "has nan for its fact 'skipped'"),
        ([SCORE], ROWS, {"kind": object}, "has <class 'object'> for its fact 'kind'"),
        ([SCORE], ROWS, None, "has None as facts; give a dict"),
        ([SCORE], ["a"], {}, "has the row 'a'; give a dict for each item"),
        ([SCORE], [{"acc": 1}], {}, "not known which item it is about, {'acc': 1}; give"),
        ([SCORE], [ROWS[0], ROWS[0]], {}, "not known which item it is about"),
    ],
)
def test_what_an_outcome_may_not_be(scores: Any, rows: Any, facts: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(TASK, SPEC, Outcome(tuple(scores), rows, facts))
    assert str(caught.value).startswith("the outcome of task arc_easy ")
    assert words in str(caught.value)


def test_no_outcome_is_said() -> None:
    with pytest.raises(ConfigError, match="task arc_easy is a tuple; give an Outcome"):
        checked(TASK, SPEC, ([SCORE], ROWS))  # type: ignore[arg-type]


def test_a_headline_score_that_is_no_mean_of_its_rows_is_said() -> None:
    cell = record("none", None).cell
    for value, kinds in ((0.5, []), (0.7, ["no-mean"])):
        evaluated = Evaluated(cell, {}, {"arc_easy": ROWS}, {}, [score(value=value)])
        assert [caution.kind for caution in lint_cell(evaluated)] == kinds
