"""Where the questions and texts come from: a folder of parquet, the hub, or the embedded mini data.

A folder has the hub's columns and this layout; `qbench data fetch DIR` makes one:

    gsm8k/{train,test}.parquet                                question, answer
    ai2_arc/{ARC-Easy,ARC-Challenge}/{train,validation,test}.parquet    question, choices{text,label}, answerKey
    mmlu/{dev,validation,test}.parquet                        question, subject, choices, answer
    wikitext2/raw_v1/test.parquet                             text
    c4_sample/train.parquet                                   text (for calibration)

`auto` never goes to the network. Data of the embedded source bears the name `mini-...` everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qbench.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

TextName = Literal["calibration", "wikitext"]


@dataclass(frozen=True)
class Table:
    """One data set: its place in a folder and on the hub, the splits and columns it must have, its licence."""

    folder: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    repository: str
    config: str | None
    licence: str

    @property
    def is_text(self) -> bool:
        """Running text, not questions."""
        return self.columns == ("text",)


_QUESTION = ("question", "choices", "answerKey")
_THREE = ("train", "validation", "test")
TABLES = {
    "gsm8k": Table(
        "gsm8k", ("train", "test"), ("question", "answer"), "openai/gsm8k", "main", "MIT"
    ),
    "arc_easy": Table(
        "ai2_arc/ARC-Easy", _THREE, _QUESTION, "allenai/ai2_arc", "ARC-Easy", "CC BY-SA 4.0"
    ),
    "arc_challenge": Table(
        "ai2_arc/ARC-Challenge",
        _THREE,
        _QUESTION,
        "allenai/ai2_arc",
        "ARC-Challenge",
        "CC BY-SA 4.0",
    ),
    "mmlu": Table(
        "mmlu",
        ("dev", "validation", "test"),
        ("question", "subject", "choices", "answer"),
        "cais/mmlu",
        "all",
        "MIT",
    ),
    "wikitext": Table(
        "wikitext2/raw_v1",
        ("test",),
        ("text",),
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "CC BY-SA 3.0 / GFDL",
    ),
    "calibration": Table("c4_sample", ("train",), ("text",), "allenai/c4", None, "ODC-BY"),
}


class Source(Protocol):
    """One place that data comes from."""

    @property
    def label(self) -> str:
        """`mini`, `hub` or `dir:NAME`, for records."""

    def describe(self) -> str:
        """For the first line of a run."""

    def splits(self, table_name: str) -> tuple[str, ...]:
        """The splits of a table that are there."""

    def rows(self, table_name: str, split: str) -> Dataset:
        """The rows of a split, in the hub's columns."""

    def text(self, name: TextName) -> list[str]:
        """Running text: to calibrate on, or to measure perplexity on."""

    def sha256(self, table_name: str) -> str:
        """Identity of a table's content: 64 hex digits, or the commit on the hub (40)."""

    def task_name(self, task: str) -> str:
        """The task's name in records: another where the data is not the real thing."""

    def table_name(self, table_name: str) -> str:
        """Short name of the data behind a table, for records."""

    def licence(self, table_name: str) -> str:
        """Under which licence a table may be used."""


def open_source(data: str) -> Source:
    """`auto`, a folder, `hub` or `mini` -> where data comes from; DataError where there is none."""
    if data == "hub":
        from qbench.tasks.hub import HubSource

        return HubSource()
    if data == "mini":
        return MiniSource()
    if data != "auto":
        return _folder(data, "--data")
    named = chosen(data)
    return MiniSource() if named == "mini" else _folder(named, "QBENCH_DATA")


def chosen(data: str) -> str:
    """What `auto` stands for: the folder that QBENCH_DATA names, or `mini`; anything else stands for itself."""
    return (os.environ.get("QBENCH_DATA") or "mini") if data == "auto" else data


def _folder(name: str, said_by: str) -> Source:
    from qbench.tasks.folder import FolderSource

    path = Path(name).expanduser()
    if not path.is_dir():
        raise DataError(
            f"{said_by}={name!r} is no folder; give auto, mini, hub or a folder such as `qbench data fetch DIR` makes"
        )
    return FolderSource(path)


def table(name: str) -> Table:
    """The declaration of a table; ConfigError for an unknown one."""
    if name not in TABLES:
        raise ConfigError(unknown_name("table", name, TABLES))
    return TABLES[name]


@dataclass(frozen=True)
class MiniSource:
    """The embedded data: small, free to carry, and never to be taken for the real benchmarks."""

    @property
    def label(self) -> str:
        """`mini`."""
        return "mini"

    def describe(self) -> str:
        """What it is, and what it is not."""
        return "mini (embedded questions and texts; not the real benchmarks: --data DIR or hub for those)"

    def splits(self, table_name: str) -> tuple[str, ...]:
        """GSM8K also has training problems for prompts; everything else has one split."""
        declared = table(table_name)
        return declared.splits if table_name == "gsm8k" else declared.splits[-1:]

    def rows(self, table_name: str, split: str) -> Dataset:
        """The rows of one split, in the hub's columns."""
        return dataset(_by_column(self._rows(table_name, split)))

    def text(self, name: TextName) -> list[str]:
        """Two disjoint halves of an English text that every Python carries."""
        from qbench.tasks import mini

        return list(mini.text("evaluation" if name == "wikitext" else "calibration"))

    def sha256(self, table_name: str) -> str:
        """Of the canonical JSON of the rows."""
        if table(table_name).is_text:
            return digest(self.text("wikitext" if table_name == "wikitext" else "calibration"))
        return digest({split: self._rows(table_name, split) for split in self.splits(table_name)})

    def task_name(self, task: str) -> str:
        """`mini-` and the task; perplexity is `mini-text`, since it is not WikiText."""
        return "mini-text" if task == "wikitext" else f"mini-{task}"

    def table_name(self, table_name: str) -> str:
        """`mini-gsm8k`, `pydoc-calibration`, ..."""
        names = {"calibration": "pydoc-calibration", "wikitext": "pydoc-evaluation"}
        return names.get(table_name, f"mini-{table_name}")

    def licence(self, table_name: str) -> str:
        """The project's own but for MMLU's development questions and Python's documentation."""
        return {"mmlu": "MIT", "wikitext": "PSF-2.0", "calibration": "PSF-2.0"}.get(
            table_name, "Apache-2.0"
        )

    def _rows(self, table_name: str, split: str) -> list[dict[str, Any]]:
        from qbench.tasks import mini

        if split not in self.splits(table_name):
            raise DataError(
                f"the mini data has no split {split!r} of {table_name}, only {', '.join(self.splits(table_name))}; "
                "use --data DIR or --data hub for all of it"
            )
        name = table_name if table_name.startswith("arc") else f"{table_name}_{split}"
        return [dict(row) for row in mini.rows(name)]


def fetch(
    folder: Path, source: Source | None = None, progress: Callable[[str], None] | None = None
) -> None:
    """Write a folder of the layout above from the hub, file by file, with `sources.json` saying what it is."""
    from qbench.files.atomic import write_text
    from qbench.tasks.folder import write_parquet

    source = source or open_source("hub")
    origins = {}
    for name, declared in TABLES.items():
        for split in source.splits(name):
            path = folder / declared.folder / f"{split}.parquet"
            rows = _rows(source, name, split)
            write_parquet(rows, path)
            if progress:
                progress(f"{path}  {len(rows)} rows")
        origins[name] = {
            "data": source.table_name(name),
            "sha256": source.sha256(name),
            "licence": declared.licence,
        }
    write_text(folder / "sources.json", json.dumps(origins, indent=2) + "\n")


def inventory(source: Source) -> list[dict[str, Any]]:
    """What a source has: table, split, rows, sha256 (12 hex digits) and licence; rows None where it is missing."""
    found: list[dict[str, Any]] = []
    for name, declared in TABLES.items():
        there = source.splits(name)
        content = source.sha256(name)[:12] if there else ""
        for split in there or declared.splits:
            count = len(_rows(source, name, split)) if there else None
            row = {
                "table": name,
                "split": split,
                "rows": count,
                "sha256": content,
                "licence": source.licence(name),
            }
            found.append(row)
    return found


def _rows(source: Source, name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a table of questions, or a text as rows of one column."""
    if not table(name).is_text:
        return source.rows(name, split).to_list()
    return [
        {"text": text} for text in source.text("wikitext" if name == "wikitext" else "calibration")
    ]


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hex digits."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def dataset(columns: dict[str, list[Any]]) -> Dataset:
    """Columns in memory as lm-eval wants them."""
    from datasets import Dataset

    return Dataset.from_dict(columns)


def _by_column(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
