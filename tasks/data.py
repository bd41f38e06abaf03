"""Where the questions and texts come from: a folder of parquet, the hub, or the embedded data.

Each task declares its table: its folder, and its splits and columns by the names that the hub has.
A data folder holds `FOLDER/SPLIT.parquet` of every table, and `c4_sample/train.parquet` with the
column `text` for the calibration; `qbench data fetch DIR` makes one, and `qbench data list` says
what one has.

`auto` is the folder that QBENCH_DATA names. Without one it is, for a model that is not embedded,
the hub or its local cache; and else the embedded data, which are called `mini-...` everywhere.
`choose` decides that. `open_source` never goes to the network for `auto`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qbench.errors import ConfigError, DataError, unknown_name
from qbench.files.ordinary import is_folder
from qbench.records import canonical_sha256
from qbench.tasks.declaration import Table
from qbench.tasks.registry import task_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datasets import Dataset

CALIBRATION = "calibration"  # the one table that no task declares: it must not be evaluated on
CALIBRATION_TABLE = Table(
    folder="c4_sample",
    splits=("train",),
    columns=("text",),
    repository="allenai/c4",
    config=None,
    licence="ODC-BY",
    running_text=True,
    texts=2000,  # about 0.9 M tokens
    shards={"train": "en/c4-train.00000-of-01024.json.gz"},
    example={"text": "Some text."},
)


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

    def text(self, table_name: str) -> list[str]:
        """Running text: to calibrate on, or to measure perplexity on."""

    def sha256(self, table_name: str) -> str:
        """Identity of a table's content: 64 hex digits, or the commit on the hub (40)."""

    def task_name(self, task: str) -> str:
        """The task's name in records; with stand-ins for the real data it is another name."""

    def table_name(self, table_name: str) -> str:
        """Short name of the data behind a table, for records."""

    def licence(self, table_name: str) -> str:
        """Under which licence a table may be used."""


def unix_lines(value: Any) -> Any:
    """The value of a cell of a table, of any nesting, with Unix line ends.

    Line ends cut answers out of texts, so an answer with other line ends would score 0.
    """
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, dict):
        return {key: unix_lines(member) for key, member in value.items()}
    if isinstance(value, list):
        return [unix_lines(member) for member in value]
    return value


def open_source(data: str) -> Source:
    """The source for `auto`, `hub`, `mini` or a folder; DataError where there is no such data."""
    from qbench.tasks.mini_source import MiniSource

    if data == "hub":
        from qbench.tasks.hub import HubSource

        return HubSource()
    if data == "mini":
        return MiniSource()
    if data != "auto":
        return _folder(data, "--data")
    named = chosen(data)
    if named == "mini":
        return MiniSource()
    return _folder(named, "QBENCH_DATA")


def chosen(data: str) -> str:
    """What `auto` stands for: the folder that QBENCH_DATA names, or `mini`; else `data` itself."""
    if data != "auto":
        return data
    return os.environ.get("QBENCH_DATA") or "mini"


class Choice(NamedTuple):
    """The data that are taken. warning: why they are not those that one would expect, or None."""

    data: str
    warning: str | None


def choose(data: str, embedded: bool, names: Sequence[str]) -> Choice:
    """The data for `--data`, such as `auto`.

    embedded: whether the model is. names: of the tables that are needed. `auto` is the folder that
    QBENCH_DATA names; without one, `mini` for an embedded model; for others the hub or its cache,
    or `mini` with a warning where these lack one of the tables.
    """
    named = chosen(data)
    if embedded or named != "mini" or data != "auto":
        return Choice(named, None)
    from qbench.tasks.hub import refusal

    reason = refusal(names)
    if reason is None:
        return Choice("hub", None)
    return Choice(
        "mini",
        "stand-ins are used in place of the real data, and no score is comparable with a "
        f"published one: {reason}",
    )


def require_data(data: str) -> None:
    """DataError for what is neither a word for data nor a folder; nothing is opened."""
    if data not in ("auto", "mini", "hub"):
        _place(data, "--data")


def _folder(name: str, said_by: str) -> Source:
    from qbench.tasks.folder import FolderSource

    return FolderSource(_place(name, said_by))


def _place(name: str, said_by: str) -> Path:
    path = Path(os.path.expanduser(name))  # where there is no such user, the name as it is
    if not is_folder(path):
        raise DataError(
            f"{said_by}={name!r} is no folder; give auto, mini, hub or a folder such as "
            "`qbench data fetch DIR` makes"
        )
    return path


def tables() -> dict[str, Table]:
    """Every table by name: those of the tasks, and the calibration text."""
    return {**task_tables(), CALIBRATION: CALIBRATION_TABLE}


def table(name: str) -> Table:
    """The declaration of a table; ConfigError for an unknown one."""
    known = tables()
    if name not in known:
        raise ConfigError(unknown_name("table", name, known))
    return known[name]


def fetch(
    folder: Path, source: Source | None = None, progress: Callable[[str], None] | None = None
) -> None:
    """Write a data folder from the hub, file by file, with `sources.json` saying what it is.

    Tables that the source does not have are left out.
    """
    from qbench.files.atomic import write_text
    from qbench.tasks.folder import write_parquet

    source = source or open_source("hub")
    origins = {}
    for name, declared in tables().items():
        splits = source.splits(name)
        if not splits:
            continue
        for split in splits:
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
    """What a source has, split by split: table, split, rows, sha256 (12 hex digits) and licence.

    Where a table is missing, rows is None and sha256 is empty.
    """
    lines: list[dict[str, Any]] = []
    for name, declared in tables().items():
        present = source.splits(name)
        content = source.sha256(name)[:12] if present else ""
        for split in present or declared.splits:
            line = {
                "table": name,
                "split": split,
                "rows": len(_rows(source, name, split)) if present else None,
                "sha256": content,
                "licence": source.licence(name),
            }
            lines.append(line)
    return lines


def _rows(source: Source, name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a table of questions, or a text as rows of one column."""
    if table(name).running_text:
        return [{"text": text} for text in source.text(name)]
    return source.rows(name, split).to_list()


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON, 64 hex digits."""
    return canonical_sha256(value)


def dataset(columns: dict[str, list[Any]]) -> Dataset:
    """Columns in memory as lm-eval wants them."""
    from datasets import Dataset

    return Dataset.from_dict(columns)
