"""The arguments of `qbench compare`: a run's folder, a record or a baseline, with a label."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from qbench.comparison.judging import code_of, declared_in, protocol
from qbench.comparison.matching import Side, cell_key, chosen
from qbench.comparison.pairs import is_unquantized
from qbench.errors import PLAIN_NAME, ConfigError, StoreError, unknown_name
from qbench.experiment.journal import read_plans
from qbench.experiment.store import read_records
from qbench.files.atomic import write_whole_folder
from qbench.files.ordinary import is_file, is_folder, is_there, ordinary_file
from qbench.records import Record

JUDGED = {"tasks", "evaluation"}  # fields of a cell: how it was judged, not what it is


def read_side(
    text: str, baselines: Path, tasks: Sequence[str] | None = None
) -> tuple[Side, list[str]]:
    """FOLDER, FOLDER:LABEL, a record's file, or a baseline by name, with or without :LABEL.

    tasks: those that are compared, None for all. Returns the side, and a sentence for each record
    that cannot be trusted. ConfigError where there is no such thing.
    """
    place, label, spot = _split(text, baselines)
    if spot.suffix == ".json":
        return _one_record(spot, text)
    records, complaints = read_records(spot)
    if all(record.id != label for record in records):  # else that very cell is asked for
        newest, fields, older = _newest(records, spot, tasks)
        if fields:
            complaints.append(
                f"{place} holds {older} older cells beside newer ones of the "
                f"same label that differ in {', '.join(fields)}; those of the last command "
                f"count, and {place}:ID chooses another"
            )
        records = newest
    side = Side(place, spot, tuple(records))
    return (chosen(side, label) if label else side), complaints


def save_baseline(side: Side, name: str, baselines: Path) -> Path:
    """Copy the records of a side and their sample files, and nothing else; returns the folder.

    An older baseline of that name is replaced. ConfigError for a name that is none.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise ConfigError(
            f"baseline name {name!r} is not a plain name of letters, digits, '.', '_' and '-'; "
            "for example uniquanf-3b"
        )
    if not side.quantized:
        raise ConfigError(f"{side.name} holds no quantized cell, so there is nothing to save")

    def write(folder: Path) -> None:
        (folder / "records").mkdir()
        for record in side.records:
            _copy(side.folder, folder, f"records/{record.id}.json")
            for path in {score.samples for score in record.scores if score.samples}:
                _copy(side.folder, folder, path)

    return write_whole_folder(baselines / name, write)


def baseline_names(baselines: Path) -> list[str]:
    """The saved baselines, in alphabetical order; ConfigError where they lie in no folder."""
    if not is_folder(baselines):
        if is_there(baselines):
            raise ConfigError(f"{baselines} is no folder; give that of the baselines")
        return []
    return sorted(path.parent.name for path in baselines.glob("*/records"))


def _asked(records: Sequence[Record], tasks: Sequence[str]) -> list[Record]:
    """The records without those that lack a task which others of their label were asked."""
    whole = {
        record.id
        for record in records
        if {spec.name for spec in record.cell.tasks}.issuperset(tasks)
    }
    labels = {cell_key(record.cell) for record in records if record.id in whole}
    return [
        record for record in records if record.id in whole or cell_key(record.cell) not in labels
    ]


def _newest(
    records: list[Record], folder: Path, tasks: Sequence[str] | None
) -> tuple[list[Record], list[str], int]:
    """The newest of cells that differ only in what has no name, such as the method's source.

    The newest belong to the command that was given last, and among its cells they were written
    last. (Times of files alone do not do: a copy of a folder has others.) Of the other draws of a
    newest cell, those stay that differ from it in their seed alone, or in other tasks than `tasks`:
    draws of an older source are none of the newer one's, also where that was not asked the tasks.
    Returns what stays, the newest last, the fields in which the cells that are left out differ, and
    how many these are.
    """
    asked: dict[str, float] = {}
    for plan in read_plans(folder):  # the oldest first
        asked |= dict.fromkeys((cell.id for cell in plan.cells), plan.started)
    age = {}
    for record in records:
        written = (folder / "records" / f"{record.id}.json").stat().st_mtime_ns
        age[record.id] = (asked.get(record.id, written / 1e9), written)
    records = sorted(records, key=lambda row: age[row.id])
    if not tasks:
        kept, fields = _like_newest(records, _differing)
        return kept, sorted(fields), len(records) - len(kept)
    made, fields = _like_newest(records, lambda row, other: _differing(row, other) - JUDGED)
    whole = _asked(made, tasks)
    kept, others = _like_newest(whole, partial(_judged_otherwise, tasks=tasks))
    left_out = len(records) - len(made) + len(whole) - len(kept)
    return kept, sorted(fields | others), left_out


def _like_newest(
    records: Sequence[Record], differing: Callable[[Record, Record], set[str]]
) -> tuple[list[Record], set[str]]:
    """Of records, the newest last, those like the newest of their label; in what the rest differ.

    differing: the fields in which two records differ.
    """
    newest = {cell_key(record.cell): record for record in records}
    kept = []
    fields: set[str] = set()
    for record in records:
        others = differing(record, newest[cell_key(record.cell)])
        fields |= others
        if not others:
            kept.append(record)
    return kept, fields


def _differing(record: Record, other: Record) -> set[str]:
    """The fields, but for the seed, in which two cells differ."""
    names = type(record.cell).model_fields.keys() - {"seed"}
    return {name for name in names if getattr(record.cell, name) != getattr(other.cell, name)}


def _judged_otherwise(record: Record, other: Record, tasks: Sequence[str]) -> set[str]:
    """Of JUDGED, in what two cells differ as to these tasks."""
    fields = set()
    for task in tasks:
        if protocol(record, task) != protocol(other, task):
            fields.add("tasks")
        elif _code(record, task) != _code(other, task):
            fields.add("evaluation")
    return fields


def _code(record: Record, task: str) -> tuple[str, str]:
    """By which code a cell was judged in a task."""
    return code_of(record), declared_in(record, task)


def _copy(source: Path, target: Path, path: str) -> None:
    try:
        file = ordinary_file(source / path, source)
    except StoreError as error:
        raise StoreError(
            f"files of the run are missing or damaged, so run it again: {error}"
        ) from None
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target / path)


def _split(text: str, baselines: Path) -> tuple[str, str, Path]:
    """The place, the label, and where that place is; both may have colons.

    ConfigError where nothing lies there.
    """
    colons = [index for index, letter in enumerate(text) if letter == ":"]
    for end in (len(text), *colons):
        spot = _place(text[:end], baselines)
        if spot is not None:
            return text[:end], text[end + 1 :], spot
    raise ConfigError(_nothing(text.partition(":")[0], baselines))


def _place(text: str, baselines: Path) -> Path | None:
    """The path of a side, None where there is nothing."""
    path = Path(text)
    if is_folder(path / "records") or (path.suffix == ".json" and is_file(path)):
        return path
    if text in baseline_names(baselines):
        return baselines / text
    return None


def _one_record(path: Path, text: str) -> tuple[Side, list[str]]:
    """A record by its file, with the unquantized cells of its run."""
    records, complaints = read_records(path.resolve().parent.parent)
    kept = [row for row in records if row.id == path.stem or is_unquantized(row)]
    if not any(row.id == path.stem for row in kept):
        raise ConfigError(f"{text} is no record that can be trusted; give one of a run's records/")
    return Side(text, path.resolve().parent.parent, tuple(kept)), complaints


def _nothing(text: str, baselines: Path) -> str:
    if "/" in text or is_there(Path(text)):
        return (
            f"{text} is neither the folder of a run nor a record's file; give the --out folder of "
            "a `qbench run`, with :LABEL where a method is to be chosen"
        )
    names = baseline_names(baselines)
    return f"{unknown_name('run or baseline', text, names)}; or give the --out folder of a run"
