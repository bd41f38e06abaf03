"""Data from a folder of parquet files, and writing such files. The layout is in `qbench.tasks.data`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ConfigError, DataError, unknown_name
from qbench.files.atomic import write_whole
from qbench.tasks.data import TABLES, TextName, dataset, digest, table

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class FolderSource:
    """Parquet files in a folder of the layout above."""

    folder: Path

    @property
    def label(self) -> str:
        """`dir:` and the folder's own name."""
        return f"dir:{self.folder.resolve().name}"

    def describe(self) -> str:
        """The folder and the tables that it has."""
        return f"folder {self.folder} ({', '.join(name for name in TABLES if self.splits(name)) or 'empty'})"

    def splits(self, table_name: str) -> tuple[str, ...]:
        """The splits whose file exists."""
        return tuple(
            split for split in table(table_name).splits if self._path(table_name, split).is_file()
        )

    def rows(self, table_name: str, split: str) -> Dataset:
        """All rows of one file; DataError naming the file where it is missing or malformed."""
        return dataset(self._columns(table_name, split))

    def text(self, name: TextName) -> list[str]:
        """The `text` column."""
        return list(self._columns(name, table(name).splits[0])["text"])

    def sha256(self, table_name: str) -> str:
        """Of the bytes of the table's files, split by split."""
        splits = self.splits(table_name)
        if not splits:
            self._columns(table_name, table(table_name).splits[0])  # says what is missing
        return digest(
            {split: _file_digest(*_stamp(self._path(table_name, split))) for split in splits}
        )

    def task_name(self, task: str) -> str:
        """Unchanged: the data is the real thing."""
        return task

    def table_name(self, table_name: str) -> str:
        """The top folder for texts (`c4_sample`), else the table's own name."""
        declared = table(table_name)
        return declared.folder.split("/")[0] if declared.is_text else table_name

    def licence(self, table_name: str) -> str:
        """As declared by the data set's publisher."""
        return table(table_name).licence

    def _path(self, table_name: str, split: str) -> Path:
        return self.folder / table(table_name).folder / f"{split}.parquet"

    def _columns(self, table_name: str, split: str) -> dict[str, list[Any]]:
        declared, path = table(table_name), self._path(table_name, split)
        if split not in declared.splits:
            raise ConfigError(unknown_name(f"split of {table_name}", split, declared.splits))
        if not path.is_file():
            raise DataError(
                f"{path} is missing: expected a parquet file with the columns {', '.join(declared.columns)}; "
                "`qbench data fetch DIR` makes such a folder, and --data mini needs none"
            )
        columns = _read(*_stamp(path))
        if absent := [column for column in declared.columns if column not in columns]:
            raise DataError(
                f"{path} lacks the column {', '.join(absent)}; it has {', '.join(columns) or 'none'}"
            )
        if not next(iter(columns.values())):
            raise DataError(f"{path} has no rows")
        return columns


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
def _read(path: Path, _modified: int, _size: int) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(
            f"{path} is not a readable parquet file ({error}); fetch it again"
        ) from error
