"""What a run leaves on disk. The files are the truth; everything else is rebuilt from them.

OUT/records/ID.json       one record per cell, with a checksum
OUT/samples/ID/TASK.jsonl every item of a task
OUT/artifacts/KEY/        a quantized model, shared by the cells that differ only in evaluation
OUT/reference/            log-probabilities of the unquantized model, removed when a run is complete
OUT/quarantine/           records that could not be trusted
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qbench.errors import StoreError
from qbench.files.atomic import write_text
from qbench.records import SCHEMA, Cell, Record, TaskSpec


class Store:
    """One output folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be; StoreError where it cannot be written."""
        self.folder = folder
        try:
            (folder / "records").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise StoreError(
                f"output folder {folder} cannot be written ({error.strerror}); "
                "choose another with --out"
            ) from None

    def artifact(self, cell: Cell) -> Path:
        """Where the quantized model of a cell lies."""
        return self.folder / "artifacts" / cell.artifact

    def reference(self, cell: Cell, spec: TaskSpec) -> Path:
        """Where a task keeps what it computed from the unquantized model, until the run ends.

        The same for all cells of that model, revision and dtype.
        """
        identity = [cell.model, cell.revision, cell.dtype, spec.model_dump(mode="json")]
        text = json.dumps(identity, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.folder / "reference" / f"{key}.npy"

    def drop_references(self) -> None:
        """Remove them: they are large, and made again when needed."""
        shutil.rmtree(self.folder / "reference", ignore_errors=True)

    def write_record(self, record: Record) -> None:
        """Atomic: the old file or the new one, whole."""
        body = record.model_dump(mode="json")
        text = json.dumps(body | {"checksum": _checksum(body)}, indent=1, allow_nan=False)
        write_text(self.folder / "records" / f"{record.id}.json", text + "\n")

    def write_samples(self, cell: Cell, task: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """One JSON line per item; returns the path relative to the folder."""
        path = Path("samples") / cell.id / f"{task}.jsonl"
        lines = [json.dumps(row, default=str) + "\n" for row in rows]
        write_text(self.folder / path, "".join(lines))
        return str(path)

    def read_records(self) -> tuple[list[Record], list[str]]:
        """All trusted records, and a sentence for each that was put into quarantine."""
        records = []
        complaints = []
        for path in sorted((self.folder / "records").glob("*.json")):
            try:
                records.append(_trusted(path))
            except StoreError as error:
                kept = self.folder / "quarantine" / path.name
                kept.parent.mkdir(exist_ok=True)
                os.replace(path, kept)
                complaints.append(f"{error}; moved to {kept}, the cell will be run again")
        return records, complaints


def read_records(folder: Path) -> tuple[list[Record], list[str]]:
    """Records of an existing run; StoreError where the folder is none."""
    if not (folder / "records").is_dir():
        raise StoreError(f"{folder} holds no records; give the --out folder of a `qbench run`")
    return Store(folder).read_records()


def _trusted(path: Path) -> Record:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"record {path.name} is truncated or no JSON ({error})") from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise StoreError(f"record {path.name} is of schema {schema}, not {SCHEMA}")
    if body.pop("checksum", None) != _checksum(body):
        raise StoreError(
            f"record {path.name} was changed after it was written (its checksum does not fit)"
        )
    try:
        record = Record.model_validate(body)
    except ValidationError as error:
        raise StoreError(
            f"record {path.name} does not fit the schema: {error.errors()[0]['msg']}"
        ) from None
    if not record.id == record.cell.id == path.stem:
        raise StoreError(
            f"record {path.name} is named {record.id} and describes cell {record.cell.id}"
        )
    return record


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
