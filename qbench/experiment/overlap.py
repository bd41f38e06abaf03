"""Whether the calibration text contains text that is evaluated.

Words are compared in lower case and without punctuation, so that spaces and commas do not matter. A
run of 13 equal words counts, as in Brown et al. 2020 (GPT-3,
arXiv:2005.14165, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qbench.tasks.contract import Task
from qbench.tasks.data import CALIBRATION, Source
from qbench.tasks.harness import HarnessTask
from qbench.tasks.text import TextTask

WORDS = 13
_WORD = re.compile(r"[^\W_]+")


def overlaps(source: Source, tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
    """By task, how many of the evaluated texts share WORDS words with the calibration text.

    JSON-able: `items` of `of` texts do, with `example` as the first shared words. Texts are the
    rows that a task may ask, or those of a running text; shorter ones are not counted in `of`.
    Tasks of other packages are left out.
    """
    known: set[int] | None = None
    found_in: dict[tuple[str, str], dict[str, Any]] = {}  # tasks on one table share the work
    result = {}
    for task in tasks:
        if not isinstance(task, (HarnessTask, TextTask)):
            continue
        table = (task.table_name, getattr(task, "text", "wiki"))
        if table not in found_in:
            if known is None:
                known = _runs_of_all(source.text(CALIBRATION))
            found_in[table] = overlap(known, _texts(source, task))
        result[task.name] = found_in[table]
    return result


def overlap(known: set[int], texts: Iterable[str]) -> dict[str, Any]:
    """`items` of `of` texts that have a run of words whose hash is known, and an `example`."""
    facts: dict[str, Any] = {"items": 0, "of": 0, "words": WORDS, "example": ""}
    for text in texts:
        words = _words(text)
        if len(words) < WORDS:
            continue
        facts["of"] += 1
        for start, run in enumerate(runs(words)):
            if run in known:
                facts["items"] += 1
                facts["example"] = facts["example"] or " ".join(words[start : start + WORDS])
                break
    return facts


def runs(words: Sequence[str]) -> Iterator[int]:
    """The hash of every WORDS words in a row."""
    for start in range(len(words) - WORDS + 1):
        yield hash(tuple(words[start : start + WORDS]))


def _runs_of_all(texts: Iterable[str]) -> set[int]:
    known: set[int] = set()
    for text in texts:
        known.update(runs(_words(text)))
    return known


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _texts(source: Source, task: HarnessTask | TextTask) -> Iterator[str]:
    """What a task asks: its running text, or the strings of each row."""
    if isinstance(task, TextTask):
        yield from task.texts(source)
        return
    for row in source.rows(task.table_name, task.splits[-1]):
        yield " ".join(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _strings(member)
    elif isinstance(value, list):
        for member in value:
            yield from _strings(member)
