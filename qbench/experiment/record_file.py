"""The file of a record: JSON with a checksum, believed only where all of it fits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qbench.errors import StoreError
from qbench.files.ordinary import ordinary_text
from qbench.records import SCHEMA, Record
from qbench.tasks.registry import nature_of

MOST_DIGITS = 300  # of a whole number: a float holds no longer one
MOST_CHARACTERS = 2_000  # of a name or a value in a record; a table of longer ones never ends


class NewerRecordError(StoreError):
    """A record of a schema that came after this one."""


def trusted_record(path: Path) -> Record:
    """The record in a file; StoreError where it is damaged, or not the cell that its name says."""
    body = _record_body(path)
    try:
        record = Record.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"record {path.name} does not fit the schema: {place}: {first['msg']}"
        ) from None
    longest = _longest([body["cell"], body.get("scores")])
    if longest > MOST_CHARACTERS:
        raise StoreError(
            f"record {path.name} has a name or a value of {longest:,} characters; "
            f"at most {MOST_CHARACTERS:,} are shown in a table"
        )
    if not record.id == record.cell.id == path.stem:
        raise StoreError(
            f"record {path.name} is named {record.id} and describes cell {record.cell.id}"
        )
    return _without_own_divergence(record)


def _without_own_divergence(record: Record) -> Record:
    """Older versions held a model that is quantized already against itself, as if it were not."""
    if record.cell.scheme is not None or record.cell.stored_as is None:
        return record
    scores = []
    for score in record.scores:
        if nature_of(score.task, score.metric) != "relative":
            scores.append(score)
    return record.model_copy(update={"scores": tuple(scores)})


def _record_body(path: Path) -> Any:
    """The JSON object of a record, without its checksum. StoreError where that does not fit."""
    try:
        text = ordinary_text(path, path.parent)
    except StoreError as error:
        raise StoreError(f"record {path.name} cannot be read: {error}") from None
    try:
        body = json.loads(text, parse_constant=_refuse_constant, parse_int=_whole)
        expected = checksum(body)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"record {path.name} is truncated or no JSON ({error})") from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise NewerRecordError(
            f"record {path.name} is of schema {schema}, newer than {SCHEMA}, which this qbench "
            "reads: use the qbench that wrote it"
        )
    if schema != SCHEMA:
        raise StoreError(f"record {path.name} is of schema {schema}, not {SCHEMA}")
    if body.pop("checksum", None) != expected:
        raise StoreError(
            f"record {path.name} was changed after it was written (its checksum does not fit)"
        )
    return body


def _longest(value: Any) -> int:
    """Characters of the longest string in a JSON document; 0 without any."""
    if isinstance(value, str):
        return len(value)
    members = value if isinstance(value, list) else []
    if isinstance(value, dict):
        members = [*value, *value.values()]
    return max(map(_longest, members), default=0)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _whole(digits: str) -> int:
    """A whole number; ValueError where no float is as large."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def checksum(body: Any) -> str:
    """The checksum of a record, without its own entry; ValueError for a number not finite."""
    if isinstance(body, dict):
        body = {key: value for key, value in body.items() if key != "checksum"}
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
