"""Data from a folder of parquet files, and writing such; `qbench.tasks.data` has the layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, DataError, unknown_name
from qbench.files.atomic import write_whole
from qbench.files.ordinary import ordinary_file
from qbench.tasks.data import dataset, digest, table, tables, unix_lines
from qbench.tasks.declaration import OtherLayout, Table

if TYPE_CHECKING:
    from datasets import Dataset

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class FolderSource:
    """Parquet files in a folder."""

    folder: Path

    @property
    def label(self) -> str:
        """`dir:` and the folder's own name."""
        return f"dir:{self.folder.resolve().name}"

    def describe(self) -> str:
        """The folder and the tables that it has."""
        names = ", ".join(name for name in tables() if self.splits(name))
        return f"folder {self.folder} ({names or 'empty'})"

    def splits(self, table_name: str) -> tuple[str, ...]:
        """The splits whose file exists."""
        declared = table(table_name)
        return tuple(split for split in declared.splits if self._file(declared, split).is_file())

    def rows(self, table_name: str, split: str) -> Dataset:
        """All rows of one file; DataError naming the file where it is missing or malformed."""
        return dataset(self._columns(table_name, split))

    def text(self, table_name: str) -> list[str]:
        """The `text` column, as much of it as is declared."""
        declared = table(table_name)
        return list(self._columns(table_name, declared.splits[0])["text"])[: declared.texts]

    def sha256(self, table_name: str) -> str:
        """Of the bytes of the table's files, split by split."""
        declared = table(table_name)
        splits = self.splits(table_name)
        if not splits:
            self._columns(table_name, declared.splits[0])  # says what is missing
        contents = {}
        for split in splits:
            path = ordinary_file(self._file(declared, split), self.folder)
            contents[split] = _file_digest(*_stamp(path))
            other = declared.other_layout
            if other is not None and path == self._other_path(declared, split):
                contents[f"columns of {split}"] = digest(other.columns)
        return digest(contents)

    def task_name(self, task: str) -> str:
        """Unchanged: the data is the real thing."""
        return task

    def table_name(self, table_name: str) -> str:
        """The top folder for texts (`c4_sample`), else the table's own name."""
        declared = table(table_name)
        if declared.running_text:
            return declared.folder.split("/")[0]
        return table_name

    def licence(self, table_name: str) -> str:
        """As declared by the data set's publisher."""
        return table(table_name).licence

    def _path(self, declared: Table, split: str) -> Path:
        """Where the file is in the first layout."""
        return self.folder / declared.folder / f"{split}.parquet"

    def _other_path(self, declared: Table, split: str) -> Path | None:
        """Where it is in the other layout, if the table has one."""
        other = declared.other_layout
        if other is None or split not in other.files:
            return None
        return self.folder / other.folder / f"{other.files[split]}.parquet"

    def _file(self, declared: Table, split: str) -> Path:
        """The file that is read: of the first layout, or of the other where only that is there."""
        first = self._path(declared, split)
        other = self._other_path(declared, split)
        if other is None or first.is_file() or not other.is_file():
            return first
        return other

    def _columns(self, table_name: str, split: str) -> Columns:
        """Columns of the hub; DataError or ConfigError saying what is missing."""
        declared = table(table_name)
        if split not in declared.splits:
            raise ConfigError(unknown_name(f"split of {table_name}", split, declared.splits))
        path = self._file(declared, split)
        if not path.is_file():
            raise DataError(
                f"{path} is missing: expected a parquet file with the columns "
                f"{', '.join(declared.columns)}; `qbench data fetch DIR` makes such a folder, "
                "and --data mini needs none"
            )
        ordinary_file(path, self.folder)
        columns = _read(*_stamp(path))
        other = declared.other_layout
        if other is not None and path == self._other_path(declared, split):
            columns = _derived(columns, other, path)
        absent = [column for column in declared.columns if column not in columns]
        if absent:
            raise DataError(
                f"{path} lacks the column {', '.join(absent)}; "
                f"it has {', '.join(columns) or 'none'}"
            )
        if not next(iter(columns.values())):
            raise DataError(f"{path} has no rows")
        return columns


def _derived(columns: Columns, other: OtherLayout, path: Path) -> Columns:
    """The hub's columns of the rows of a file in another layout, by the declared expressions.

    Raises ConfigError for an expression that cannot be read, DataError where a row has not what it
    asks for.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    count = len(next(iter(columns.values()), []))
    rows = [{name: values[index] for name, values in columns.items()} for index in range(count)]
    derived: Columns = {}
    for column, text in other.columns.items():
        try:
            expression = environment.compile_expression(text, undefined_to_none=False)
        except TemplateError as error:
            raise ConfigError(f"the expression {text!r} of {column} is no Jinja: {error}") from None
        values = []
        for number, row in enumerate(rows):
            value = _value(expression, row, f"{path}, row {number}: {column} = {text}")
            values.append(value)
        derived[column] = values
    return derived


def _value(expression: Any, row: dict[str, Any], place: str) -> Any:
    """One cell of a derived column; DataError naming the place where it cannot be had."""
    from jinja2 import Undefined

    try:
        value = expression(**row)
    except Exception as error:  # an expression over foreign data may raise anything
        raise DataError(f"{place} cannot be worked out ({error})") from error
    if isinstance(value, Undefined):
        raise DataError(f"{place} cannot be worked out (the row has {', '.join(row)})")
    return value


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows as a compressed parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.Table.from_pylist(rows)
    write_whole(path, lambda part: pq.write_table(data, part, compression="zstd"))


def _stamp(path: Path) -> tuple[Path, int, int]:
    state = path.stat()
    return path, state.st_mtime_ns, state.st_size


@lru_cache(maxsize=64)
def _file_digest(path: Path, _modified: int, _size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@lru_cache(maxsize=16)
def _read(path: Path, _modified: int, _size: int) -> Columns:
    import pyarrow.parquet as pq

    try:
        return unix_lines(pq.read_table(path).to_pydict())
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(
            f"{path} is not a readable parquet file ({error}); fetch it again"
        ) from error
