"""The items behind a score, read from the file of rows that a run has written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qbench.errors import StoreError
from qbench.files.ordinary import json_of, ordinary_bytes
from qbench.records import Score, TaskSpec
from qbench.tasks.outcome import HASHES, unidentified
from qbench.tasks.registry import nature_of

Row = Mapping[str, Any]
Key = tuple[str, ...]  # what says which item a row is about
SAMPLE_BYTES = 1_000_000_000  # of a file; a damaged one must not fill memory
SAME = 1e-6  # relative, within which a score is the mean of its rows


@dataclass(frozen=True)
class Items:
    """The values of a score's items by what they are about, in the order of the file.

    values (float64, (items,)). clusters: what an item belongs to, such as the article of a window;
    an item of its own where the row names none. rows: as they stand in the file.
    """

    keys: tuple[Key, ...]
    values: NDArray[np.float64]
    clusters: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def clustered(self) -> bool:
        """Whether any two items belong together."""
        return len(set(self.clusters)) < len(self.clusters)


class Samples:
    """The sample files of a run's folder, each read once."""

    def __init__(self, folder: Path | None) -> None:
        """folder: of the run; without one there are no samples."""
        self.folder = folder
        self._files: dict[str, tuple[Row, ...]] = {}

    def rows(self, path: str | None, digest: str | None = None) -> tuple[Row, ...]:
        """The rows of a file, relative to the folder; none where it is missing or damaged.

        digest: the file's sha256, None where it is not known. A path out of the folder is not
        followed: records may come from elsewhere.
        """
        if self.folder is None or path is None:
            return ()
        if path not in self._files:
            self._files[path] = _read(self.folder, path, digest)
        return self._files[path]

    def items(self, score: Score, digest: str | None = None) -> Items | None:
        """The items of a score, as of `items_of`.

        digest: the sha256 of its file, None where it is not known.
        """
        return items_of(self.rows(score.samples, digest), score)


def items_of(of_file: Sequence[Row], score: Score) -> Items | None:
    """The items of a score among the rows of its task; None where it is no mean of their values.

    And where a row does not say which item it is about: rows are not paired by their order.
    """
    rows = [row for row in of_file if row.get("filter") == score.filter]
    chosen = []
    values = []
    of_text = _is_perplexity(score)
    for row in rows:
        value = _value(row, score.metric, of_text)
        if value is not None:
            chosen.append(row)
            values.append(value)
    if not values or len(values) != score.n or not _is_mean(values, score):
        return None
    if unidentified(chosen) is not None:
        return None
    clusters = []
    for index, row in enumerate(chosen):
        clusters.append(str(row["cluster"]) if "cluster" in row else f"item {index}")
    return Items(keys(chosen), np.array(values), tuple(clusters), tuple(chosen))


def keys(rows: Sequence[Row]) -> tuple[Key, ...]:
    """Of each row: the filter, the subject, the hash of the item, and which of its like it is.

    The hash is of the document, or of prompt and target where a row has none; else it is the item's
    number.
    """
    seen: Counter[Key] = Counter()
    identities = []
    for row in rows:
        digest = row.get("doc_hash") or f"{row.get('prompt_hash')} {row.get('target_hash')}"
        if not any(row.get(name) for name in HASHES):
            digest = f"number {row.get('doc_id')}"
        key = (str(row.get("filter")), str(row.get("subject", "")), str(digest))
        identities.append((*key, str(seen[key])))
        seen[key] += 1
    return tuple(identities)


def item_name(row: Row) -> str:
    """What an item is called: its number in the table, behind its subject where it has one."""
    subject = row.get("subject")
    return f"{subject} {row.get('doc_id')}" if subject else str(row.get("doc_id"))


def items_file(spec: TaskSpec) -> Path:
    """Where the texts of a task's items lie, relative to the folder of a run."""
    return Path("items") / f"{spec.name}-{spec.sha256[:12]}-{spec.limit or 'all'}.jsonl"


def _is_perplexity(score: Score) -> bool:
    return nature_of(score.task, score.metric) == "perplexity"


def _value(row: Row, metric: str, perplexity: bool) -> float | None:
    """What the row adds to the score: for perplexity the negative log-likelihood."""
    value = row.get(metric)
    if perplexity:
        value = row.get("nll")
        if value is None and _is_number(row.get("loglikelihood")):
            value = -row["loglikelihood"]
    return float(value) if _is_number(value) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _is_mean(values: Sequence[float], score: Score) -> bool:
    mean = float(np.mean(values))
    if _is_perplexity(score):
        mean = float(np.exp(min(mean, 700)))
    return abs(mean - score.value) <= SAME * max(1.0, abs(score.value))


def _read(folder: Path, path: str, digest: str | None) -> tuple[Row, ...]:
    try:
        content = ordinary_bytes(folder / path, folder, SAMPLE_BYTES)
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            return ()
        lines = content.decode().splitlines()
        rows = [json_of(line) for line in lines if line]
    except (StoreError, ValueError):
        return ()
    return tuple(row for row in rows if isinstance(row, dict))
