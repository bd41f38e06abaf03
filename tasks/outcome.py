"""What a task hands back, held against what it declares: a task may be anybody's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qbench.errors import ConfigError
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Outcome, Task

HASHES = ("doc_hash", "prompt_hash", "target_hash")  # of a row, by which its item is known


def checked(task: Task, spec: TaskSpec, outcome: Outcome) -> Outcome:
    """The outcome, with Python's own numbers in the place of those of numpy and torch.

    ConfigError naming the task where something is no outcome, where a score is not as it is
    declared, where a row does not say which item it is about, and where facts are not JSON-able.
    """
    if not isinstance(outcome, Outcome):
        raise _at_fault(spec, f"is a {type(outcome).__name__}; give an Outcome(scores, samples)")
    scores, rows, facts = outcome
    for score in scores:
        _require_declared(task, spec, score)
    plain_rows = [_plain(row) for row in rows]
    stray = next((row for row in plain_rows if not isinstance(row, Mapping)), None)
    if stray is not None:
        raise _at_fault(spec, f"has the row {stray!r}; give a dict for each item")
    nameless = unidentified(plain_rows)
    if nameless is not None:
        raise _at_fault(
            spec,
            f"has a row of which it is not known which item it is about, {_shortened(nameless)}; "
            "give each row a doc_hash, the hash of its item, or a doc_id that no other item has",
        )
    return Outcome(tuple(scores), plain_rows, _plain_facts(spec, facts))


def unidentified(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first row that does not say which item it is about; None where all do.

    A row says it by a hash, or by a number that it alone has of its filter and subject. Equal items
    may have equal hashes.
    """
    seen = set()
    for row in rows:
        if any(row.get(name) for name in HASHES):
            continue
        number = row.get("doc_id")
        own = (str(row.get("filter")), str(row.get("subject", "")), str(number))
        if number is None or own in seen:
            return row
        seen.add(own)
    return None


def _require_declared(task: Task, spec: TaskSpec, score: Score) -> None:
    """ConfigError where a score contradicts its task's declaration."""
    name = f"score {score.metric!r}"
    if score.task != spec.name and not score.task.startswith(f"{spec.name}_"):
        raise _at_fault(spec, f"has a {name} of the task {score.task!r}; give it {spec.name!r}")
    if not math.isfinite(score.value):
        raise _at_fault(spec, f"has the value {score.value} for its {name}; give a finite number")
    for declared in task.scores:
        if declared.metric != score.metric:
            continue
        if declared.higher_is_better != score.higher_is_better:
            raise _at_fault(
                spec,
                f"has higher_is_better={score.higher_is_better} for its {name}, and the task "
                f"declares that a {declared.better} one is better; let them agree",
            )
        if declared.unit == "%" and not 0 <= score.value <= 1:
            raise _at_fault(
                spec,
                f"has the value {score.value:.6g} for its {name}, whose unit is %; give a share "
                "of 0 to 1, which is shown times 100, or declare another unit",
            )


def _plain_facts(spec: TaskSpec, facts: Any) -> dict[str, Any]:
    plain = _plain(facts)
    if not isinstance(plain, dict):
        raise _at_fault(spec, f"has {facts!r} as facts; give a dict")
    for name, value in plain.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _at_fault(
                spec,
                f"has {_shortened(value)} for its fact {name!r} ({error}); give finite numbers, "
                "texts, lists and dicts",
            ) from None
    return plain


def _plain(value: Any) -> Any:
    """The same, where numbers and arrays of numpy and torch are those of Python."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _at_fault(spec: TaskSpec, fault: str) -> ConfigError:
    return ConfigError(f"the outcome of task {spec.name} {fault}")
