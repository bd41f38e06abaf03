"""The embedded data as a data source, and every name that says so: the only place that knows them.

No score on this data is a score on the real data set, so a task bears another name on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from qbench.errors import DataError
from qbench.tasks.data import dataset, digest, table

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "mini-"
OTHER_NAMES = {  # it is not WikiText
    "wikitext": "text",
    "wikitext_4096": "text_4096",
    "wikitext_8192": "text_8192",
}


class _Embedded(NamedTuple):
    """What is embedded of a table. parts: split -> what `qbench.tasks.mini` calls it."""

    name: str
    parts: dict[str, str]
    licence: str


EMBEDDED = {
    "gsm8k": _Embedded("mini-gsm8k", {"train": "gsm8k_train", "test": "gsm8k_test"}, "Apache-2.0"),
    "arc_easy": _Embedded("mini-arc_easy", {"test": "arc_easy"}, "Apache-2.0"),
    "arc_challenge": _Embedded("mini-arc_challenge", {"test": "arc_challenge"}, "Apache-2.0"),
    "mmlu": _Embedded("mini-mmlu", {"test": "mmlu_test"}, "MIT"),
    "wikitext": _Embedded("pydoc-evaluation", {"test": "evaluation"}, "PSF-2.0"),
    "calibration": _Embedded("pydoc-calibration", {"train": "calibration"}, "PSF-2.0"),
}


def stand_in_name(task: str) -> str:
    """The name of a task in records where its data is the embedded one."""
    return PREFIX + OTHER_NAMES.get(task, task)


@cache
def record_names(task: str) -> tuple[str, str]:
    """The names that a task has in records: on real data, and on the embedded data."""
    return task, stand_in_name(task)


def split_name(name_in_record: str) -> tuple[str, str]:
    """`mini-arc_easy` -> (`mini-`, `arc_easy`); the first part is empty for real data."""
    if name_in_record.startswith(PREFIX):
        return PREFIX, name_in_record.removeprefix(PREFIX)
    return "", name_in_record


@dataclass(frozen=True)
class MiniSource:
    """The embedded data: small, free to carry, and never to be taken for the real benchmarks."""

    @property
    def label(self) -> str:
        """`mini`."""
        return "mini"

    def describe(self) -> str:
        """What it is, and what it is not."""
        return (
            "mini (embedded questions and texts; not the real benchmarks: "
            "--data DIR or hub for those)"
        )

    def splits(self, table_name: str) -> tuple[str, ...]:
        """GSM8K also has training problems for prompts; everything else has one split or none."""
        table(table_name)  # refuses an unknown one
        if table_name not in EMBEDDED:
            return ()
        return tuple(EMBEDDED[table_name].parts)

    def rows(self, table_name: str, split: str) -> Dataset:
        """The rows of one split, in the hub's columns; DataError where there are none."""
        rows = self._rows(table_name, split)
        return dataset({column: [row[column] for row in rows] for column in rows[0]})

    def text(self, table_name: str) -> list[str]:
        """Two disjoint halves of an English text that every Python carries."""
        from qbench.tasks import mini

        (part,) = self._embedded(table_name).parts.values()
        return mini.text(part)

    def sha256(self, table_name: str) -> str:
        """Of the canonical JSON of the rows."""
        parts = self._embedded(table_name).parts
        if table(table_name).running_text:
            return digest(self.text(table_name))
        return digest({split: self._rows(table_name, split) for split in parts})

    def task_name(self, task: str) -> str:
        """`mini-` and the task; perplexity is `mini-text`, since it is not WikiText."""
        return stand_in_name(task)

    def table_name(self, table_name: str) -> str:
        """`mini-gsm8k`, `pydoc-calibration`, ..."""
        return self._embedded(table_name).name

    def licence(self, table_name: str) -> str:
        """The project's own but for MMLU's questions and Python's documentation."""
        if table_name in EMBEDDED:
            return EMBEDDED[table_name].licence
        return table(table_name).licence

    def _embedded(self, table_name: str) -> _Embedded:
        table(table_name)  # refuses an unknown one
        if table_name not in EMBEDDED:
            raise DataError(
                f"the mini data has no {table_name}, only {', '.join(EMBEDDED)}; "
                "use --data DIR or --data hub for it"
            )
        return EMBEDDED[table_name]

    def _rows(self, table_name: str, split: str) -> list[dict[str, Any]]:
        from qbench.tasks import mini

        parts = self._embedded(table_name).parts
        if split not in parts:
            raise DataError(
                f"the mini data has no split {split!r} of {table_name}, only {', '.join(parts)}; "
                "use --data DIR or --data hub for all of it"
            )
        return mini.rows(parts[split])
