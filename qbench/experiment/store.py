"""What a run leaves on disk. The files are the truth; everything else is rebuilt from them.

OUT/records/ID.json       one record per cell, with a checksum
OUT/samples/ID/TASK.jsonl every item of a task
OUT/items/TASK-*.jsonl    what those items are, once for all cells
OUT/artifacts/KEY/        a quantized model, shared by the cells that differ only in evaluation
OUT/reference/            what cells share, mapped into memory: log-probabilities of the unquantized
                          model and calibration tokens, removed when the last run is complete
OUT/latency/              times of products and models, shared by cells of equal formats
OUT/claims/               files that a runner locks while it works on what they are named after
OUT/logs/ID.txt           what a cell that failed has printed
OUT/events/ID.jsonl       what happened to a cell and when, a line each (see `journal`)
OUT/plans/KEY.json        which cells a run has, and what they were estimated to cost
OUT/quarantine/           records that could not be trusted

Several runners may share a folder: each claims a cell before it works on it, and nobody overwrites
an `ok` record.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from qbench.errors import StoreError
from qbench.experiment.record_file import NewerRecordError, checksum, trusted_record
from qbench.files.atomic import leftovers, refusal_of, remove, require_folders, write_text
from qbench.files.claims import claimed, claimed_in_time, is_claimed
from qbench.files.ordinary import is_folder
from qbench.records import Cell, Latency, Record, TaskSpec

WRITTEN = (  # folders without which a cell, or the run, ends; without events it goes on
    "records", "samples", "items", "artifacts", "reference", "latency", "claims", "logs", "plans",
)  # fmt: skip
DAY = 86400.0  # seconds
RUNNERS = "runners"  # a claim that all who work on the folder share
COMPUTING = "computing"  # a claim that cells share, and that a latency has for itself


class Store:
    """One output folder."""

    def __init__(self, folder: Path, to_write: bool = True) -> None:
        """Make the folder if need be; StoreError where it cannot be written.

        to_write: whether something is to be written. If not, the folder is only read, and may
        belong to somebody else.
        """
        self.folder = folder
        refusal = refusal_of(folder, folder / "records") if to_write else None
        if refusal is not None:
            raise StoreError(
                f"output folder {folder} cannot be written ({refusal}); choose another with --out"
            )

    def require_writable(self, cells: Iterable[Cell]) -> None:
        """StoreError, before any work, where the records of these cells could not be written.

        One reason is a record of a newer qbench, which would be lost.
        """
        cells = list(cells)
        require_folders(self.folder, [*WRITTEN, *(f"samples/{cell.id}" for cell in cells)])
        for cell in cells:
            self._require_no_newer(cell.id)

    def artifact(self, cell: Cell) -> Path:
        """The folder of a cell's quantized model."""
        return self.folder / "artifacts" / cell.artifact

    def reference(self, cell: Cell, spec: TaskSpec) -> Path:
        """Where a task keeps what it computed from the unquantized model, until the run ends.

        The same for all cells of that model, revision, dtype, device and code that judges.
        """
        how = [cell.dtype, cell.device, cell.evaluation]
        identity = [cell.model, cell.revision, *how, spec.model_dump(mode="json")]
        return self.folder / "reference" / f"{_key(identity)}.npy"

    def calibration(self, cell: Cell) -> Path:
        """Where the tokens that calibrate a cell are kept, until the run ends.

        The same for all cells of that model, revision and sample.
        """
        sample = cell.calibration and cell.calibration.model_dump(mode="json", exclude={"dtype"})
        identity = [cell.model, cell.revision, sample, cell.seed, cell.quantization]
        return self.folder / "reference" / f"tokens-{_key(identity)}.npy"

    def latency(self, facts: Sequence[Any]) -> Path:
        """The file of a time that was measured under these JSON-able facts."""
        return self.folder / "latency" / f"{_key(facts)}.json"

    def log(self, cell: Cell) -> Path:
        """The file for what a cell's process prints."""
        return self.folder / "logs" / f"{cell.id}.txt"

    def events(self, cell_id: str) -> Path:
        """The file of what happens to a cell."""
        return self.folder / "events" / f"{cell_id}.jsonl"

    def claim(self, name: str) -> Path:
        """The file that a runner locks while it works on what has this name."""
        return self.folder / "claims" / name

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A context for a runner at work. The last one to complete removes what cells shared.

        Such files are large, and can be made again. An interrupted run leaves them for the next.
        """
        runners = self.claim(RUNNERS)
        with claimed_in_time(runners, shared=True):
            yield
        with claimed(runners) as alone:
            if not alone:
                return
            shutil.rmtree(self.folder / "reference", ignore_errors=True)
            for claim in runners.parent.iterdir():
                if claim != runners:
                    with suppress(OSError):  # what is no file is no claim
                        claim.unlink()

    def remove_leftovers(self) -> list[Path]:
        """Remove what killed saves have left, once it is a day old; returns the paths."""
        left = leftovers(self.folder, DAY)
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return left

    def litter(self, delete: bool) -> list[tuple[Path, int]]:
        """What interrupted runs have left, with its bytes: scratch directories and `reference/`.

        A link counts without its target. delete: whether to remove everything. StoreError where a
        run is at work, as then it is in use, and where something cannot be removed.
        """
        runners = self.claim(RUNNERS)
        with claimed(runners) if delete else nullcontext(not is_claimed(runners, True)) as alone:
            if not alone:
                raise StoreError(f"a run is at work in {self.folder}; wait until it has ended")
            try:
                left = leftovers(self.folder)
                if os.path.lexists(self.folder / "reference"):
                    left.append(self.folder / "reference")
                sizes = [_size(path) for path in left]
            except OSError as error:
                raise StoreError(
                    f"{error.filename} cannot be read ({error.strerror}); remove it yourself"
                ) from None
            for path in left if delete else []:
                remove(path)
        return list(zip(left, sizes, strict=True))

    def record(self, cell: Cell) -> Record | None:
        """The record of a cell, where there is one that can be trusted."""
        try:
            return trusted_record(self._record_path(cell.id))
        except StoreError:
            return None

    def stamp(self, cell: Cell) -> tuple[int, int] | None:
        """A value that changes whenever the record of a cell is written; None without a record."""
        try:
            status = self._record_path(cell.id).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def write_record(self, record: Record) -> None:
        """Atomic: the old file or the new one, whole. A record that is `ok` stays as it is.

        StoreError where there is one of a newer qbench, which would be lost.
        """
        present = self._require_no_newer(record.id)
        if present is None or present.status != "ok":
            self._write(record)

    def _require_no_newer(self, name: str) -> Record | None:
        """The record of this name; None where it was never there, or is to be put away."""
        try:
            return trusted_record(self._record_path(name))
        except NewerRecordError as error:
            raise StoreError(f"{error}; give another --out") from None
        except StoreError:
            return None

    def add_latency(self, cell: Cell, latency: Latency) -> Record:
        """Give the record of a finished cell its latency, in place of an older one; returns it.

        Nothing else of the record changes, nor the time of its file, by which the newest of
        several is known. StoreError where there is no record to be trusted.
        """
        path = self._record_path(cell.id)
        made = path.stat().st_mtime_ns if path.is_file() else None
        record = trusted_record(path).model_copy(update={"latency": latency})
        self._write(record)
        if made is not None:
            os.utime(path, ns=(made, made))
        return record

    def _write(self, record: Record) -> None:
        """Atomic: the old file or the new one, whole."""
        body = record.model_dump(mode="json")
        text = json.dumps(body | {"checksum": checksum(body)}, indent=1, allow_nan=False)
        write_text(self._record_path(record.id), text + "\n")

    def write_samples(
        self, cell: Cell, task: str, rows: Iterable[Mapping[str, Any]]
    ) -> tuple[str, str]:
        """One JSON line per item; returns the path relative to the folder, and its sha256."""
        path = Path("samples") / cell.id / f"{task}.jsonl"
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        write_text(self.folder / path, text)
        return str(path), hashlib.sha256(text.encode()).hexdigest()

    def read_records(self) -> tuple[list[Record], list[str]]:
        """All trusted records, and a sentence for each of the others.

        They are put into quarantine, as a run does that goes on here, but for those that a newer
        qbench wrote.
        """
        records, doubts = self._sorted_out()
        complaints = []
        for path, error in doubts.items():
            if isinstance(error, NewerRecordError):
                complaints.append(f"{error}; it stays where it is")
                continue
            kept = self._put_away(path)
            if kept is not None:
                complaints.append(f"{error}; moved to {kept}, the cell will be run again")
        return records, complaints

    def peek_records(self) -> tuple[list[Record], list[str]]:
        """The same without moving or making any file."""
        records, doubts = self._sorted_out()
        return records, [f"{error}; it is left out" for error in doubts.values()]

    def _sorted_out(self) -> tuple[list[Record], dict[Path, StoreError]]:
        """All trusted records, and what is wrong with the files of the others."""
        records = []
        doubts = {}
        for path in sorted((self.folder / "records").glob("*.json")):
            try:
                records.append(trusted_record(path))
            except StoreError as error:
                doubts[path] = error
        return records, doubts

    def _put_away(self, path: Path) -> Path | None:
        """Move a record to quarantine, unless another runner has done so or works on its cell."""
        kept = self.folder / "quarantine" / path.name
        with claimed(self.claim(path.stem)) as mine:
            if not mine or _is_trusted(path) or not path.exists():
                return None
            try:
                kept.parent.mkdir(exist_ok=True)
                os.replace(path, kept)
            except OSError as error:
                raise StoreError(
                    f"{path} cannot be moved to {kept.parent} ({error.strerror}); "
                    "make that a folder that you can write to"
                ) from None
        return kept

    def _record_path(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"


def read_records(folder: Path) -> tuple[list[Record], list[str]]:
    """Records of an existing run, and a sentence for each that cannot be trusted.

    Nothing in the folder is changed. StoreError where it is not the folder of a run.
    """
    return open_run(folder).peek_records()


def open_run(folder: Path) -> Store:
    """The folder of an existing run, for reading; StoreError where it is none."""
    if not is_folder(folder / "records"):
        raise StoreError(f"{folder} holds no records; give the --out folder of a `qbench run`")
    return Store(folder, to_write=False)


def _size(path: Path) -> int:
    """Bytes of all files below a folder, or of what is none; no link is followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _is_trusted(path: Path) -> bool:
    try:
        trusted_record(path)
    except StoreError:
        return False
    return True


def _key(identity: Any) -> str:
    """12 hex digits, a hash of JSON-able values."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
