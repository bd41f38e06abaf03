"""The paired difference of two cells in one score, with its interval and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qbench.comparison.digits import places_of, plain
from qbench.comparison.judging import judged_alike, protocol
from qbench.comparison.samples import Items, Samples
from qbench.records import Record, Score
from qbench.stats.difference import Difference
from qbench.stats.replicates import crossed_mean, crossed_share
from qbench.tasks.registry import nature_of, unit_of

ScoreKey = tuple[str, str, str]  # task, metric, filter
TIMES = "\u00d7"
FIGURES = 3  # significant digits of what is no share
ALIKE = 0.2  # the halves of an interval that differ by this share are one half behind a ±


@dataclass(frozen=True)
class Contrast:
    """Candidate minus base in one score, on the same items.

    difference: in the unit of the items; of perplexity, in nats. ratio: whether `exp` of it is the
    factor between two perplexities. share: whether items are shares, shown in points of percent.
    """

    difference: Difference
    ratio: bool
    share: bool
    higher_is_better: bool

    @property
    def kind(self) -> str:
        """`ratio`, `points` or `difference`: what the figures are."""
        if self.ratio:
            return "ratio"
        return "points" if self.share else "difference"

    @property
    def figures(self) -> tuple[float, float, float]:
        """(value, low, high) as people read them: factors, points of percent, or plain numbers."""
        interval = self.difference
        values = (interval.value, interval.low, interval.high)
        if self.ratio:
            return tuple(_exp(value) for value in values)  # type: ignore[return-value]
        scale = 100.0 if self.share else 1.0
        return tuple(scale * value for value in values)  # type: ignore[return-value]

    @property
    def is_better(self) -> bool:
        """Whether the whole interval is on the better side of no difference."""
        interval = self.difference
        return interval.low > 0 if self.higher_is_better else interval.high < 0

    @property
    def text(self) -> str:
        """`×1.221 [1.190, 1.253]`, `-3.8 [-6.1, -1.5]` or `+0.123 [0.100, 0.146]`."""
        value, low, high = self.figures
        places = self._places()
        if self.ratio:
            return f"{TIMES}{plain(value, places)} [{plain(low, places)}, {plain(high, places)}]"
        return f"{_signed(value, places)} [{_signed(low, places)}, {_signed(high, places)}]"

    @property
    def short(self) -> str:
        """`×1.22±0.03` or `-3.8±2.3`: half of the interval behind the sign.

        The interval itself where its halves differ: `×1.22[1.02,1.46]`.
        """
        value, low, high = self.figures
        places = self._places()
        shown = f"{TIMES}{plain(value, places)}" if self.ratio else _signed(value, places)
        if math.isclose(high - value, value - low, rel_tol=ALIKE):
            return f"{shown}±{plain((high - low) / 2, places)}"
        ends = [plain(end, places) if self.ratio else _signed(end, places) for end in (low, high)]
        return f"{shown}[{','.join(ends)}]"

    def _places(self) -> int:
        """Digits after the point: two of half the interval, one of points of percent."""
        if self.share:
            return 1
        _, low, high = self.figures
        half = (high - low) / 2
        if not math.isfinite(half) or half <= 0:
            return FIGURES
        if self.ratio and half >= 1:
            return 1 if half < 10 else 0
        return places_of(half, 2)


class _Known:
    """What has been read and computed of the records in a run's folder."""

    def __init__(self, folder: Path | None) -> None:
        self.samples = Samples(folder)
        self.items: dict[tuple[str, ScoreKey], Items | None] = {}
        self.contrasts: dict[tuple[str, str, ScoreKey], Contrast | None] = {}
        self.over_draws: dict[tuple[object, ...], Contrast | None] = {}


class Pairs:
    """The records of a run with their items, from which differences are taken."""

    def __init__(
        self, records: Sequence[Record], folder: Path | None, known: _Known | None = None
    ) -> None:
        """folder: of the run, where the sample files lie; without it nothing can be paired.

        known: of the same folder, where it is shared.
        """
        self._known = _Known(folder) if known is None else known
        self._unquantized: dict[str, list[Record]] = {}
        for record in records:
            if is_unquantized(record) and record.status == "ok":
                self._unquantized.setdefault(record.cell.model, []).append(record)

    @property
    def samples(self) -> Samples:
        """The rows behind the scores."""
        return self._known.samples

    def from_unquantized(self, record: Record, key: ScoreKey) -> Contrast | None:
        """The difference from the unquantized model, asked in the same way; None where none is.

        What is such a difference by its nature is given as it is.
        """
        if is_unquantized(record):
            return None
        if nature_of(*key[:2]) == "relative":
            name = (record.id, record.id, key)
            if name not in self._known.contrasts:
                self._known.contrasts[name] = self._itself(record, key)
            return self._known.contrasts[name]
        for base in self._unquantized.get(record.cell.model, []):
            if base.id != record.id and judged_alike(base, record, key[0]):
                contrast = self.between(base, record, key)
                if contrast is not None:
                    return contrast
        return None

    def between(self, base: Record, candidate: Record, key: ScoreKey) -> Contrast | None:
        """The difference of two cells of one model; None where they cannot be paired.

        That is so where either lacks the score or its items, or where they were asked otherwise.
        """
        name = (base.id, candidate.id, key)
        contrasts = self._known.contrasts
        if name not in contrasts:
            contrasts[name] = self._contrast(base, candidate, key)
        return contrasts[name]

    def over(self, draws: Sequence[tuple[Record, Record]], key: ScoreKey) -> Contrast | None:
        """The difference of two cells over draws, a base and a candidate of each.

        Draws and clusters of items are crossed. None where one of the draws cannot be paired.
        """
        if len(draws) == 1:
            return self.between(*draws[0], key)
        name = (*((base.id, candidate.id) for base, candidate in draws), key)
        known = self._known.over_draws
        if name not in known:
            known[name] = self._crossed(draws, key)
        return known[name]

    def items(self, record: Record, key: ScoreKey) -> Items | None:
        """The items behind a cell's score."""
        name = (record.id, key)
        items = self._known.items
        if name not in items:
            score = score_of(record, key)
            digest = record.evaluation.get(key[0], {}).get("samples_sha256")
            items[name] = None if score is None else self.samples.items(score, digest)
        return items[name]

    def _contrast(self, base: Record, candidate: Record, key: ScoreKey) -> Contrast | None:
        score = score_of(candidate, key)
        first, second = self.items(base, key), self.items(candidate, key)
        if score is None or first is None or second is None:
            return None
        if protocol(base, key[0]) != protocol(candidate, key[0]):
            return None
        order = aligned(first, second)
        if order is None:
            return None
        return contrast(score, first.values, second.values[order], first)

    def _crossed(self, draws: Sequence[tuple[Record, Record]], key: ScoreKey) -> Contrast | None:
        score, first = score_of(draws[0][1], key), self.items(draws[0][0], key)
        if score is None or first is None:
            return None
        tables: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for pair in draws:
            for table, record in zip(tables, pair, strict=True):
                items = self.items(record, key)
                order = None if items is None else aligned(first, items)
                if items is None or order is None:
                    return None
                table.append(items.values[order])
        return contrast(score, np.stack(tables[0]), np.stack(tables[1]), first)

    def _itself(self, record: Record, key: ScoreKey) -> Contrast | None:
        """A divergence's own mean; of an agreement, what it lacks to 1."""
        score, items = score_of(record, key), self.items(record, key)
        if score is None or items is None:
            return None
        ideal = np.full_like(items.values, 1.0 if score.higher_is_better else 0.0)
        own = contrast(score, ideal, items.values, items)
        interval = own.difference
        # Nothing diverges less than not at all, or agrees more than wholly; but an estimate of a
        # divergence from samples may be negative.
        low, high = (
            (interval.low, min(interval.high, max(0.0, interval.value)))
            if score.higher_is_better
            else (max(interval.low, min(0.0, interval.value)), interval.high)
        )
        return replace(own, difference=replace(interval, low=low, high=high))


_shared: ContextVar[dict[Path | None, _Known] | None] = ContextVar("shared", default=None)


@contextmanager
def shared_pairs() -> Iterator[None]:
    """Within it, `pairs_of` reads items and takes differences once for all who ask.

    It is for several reports of the records of a folder, whose files do not change meanwhile.
    """
    token = _shared.set(_shared.get() or {})
    try:
        yield
    finally:
        _shared.reset(token)


def pairs_of(records: Sequence[Record], folder: Path | None) -> Pairs:
    """`Pairs(records, folder)`; within `shared_pairs` they know what others of the folder know."""
    shared = _shared.get()
    if shared is None:
        return Pairs(records, folder)
    return Pairs(records, folder, shared.setdefault(folder, _Known(folder)))


def contrast(score: Score, base: np.ndarray, candidate: np.ndarray, items: Items) -> Contrast:
    """Of values (items,) or (draws, items), candidate minus base, in the clusters of the items."""
    clusters = items.clusters if items.clustered else None
    both = np.concatenate([np.ravel(base), np.ravel(candidate)])
    share = unit_of(score.task, score.metric) == "%"
    # Windows that all agree are counted as answers are: that none changed does not make it certain.
    if share and np.isin(both, (0.0, 1.0)).all():
        difference = crossed_share(base, candidate, clusters)
    else:
        difference = crossed_mean(candidate - base, clusters)
    if share:  # Student's interval does not know where shares end
        low, high = max(difference.low, -1.0), min(difference.high, 1.0)
        difference = replace(difference, low=low, high=high)
    ratio = nature_of(score.task, score.metric) == "perplexity"
    return Contrast(difference, ratio, share, score.higher_is_better)


def aligned(first: Items, second: Items) -> list[int] | None:
    """Where each item of the first stands in the second; None where they are not the same."""
    if first.keys == second.keys:
        return list(range(len(first.keys)))
    places = {key: index for index, key in enumerate(second.keys)}
    if len(first.keys) != len(second.keys) or not all(key in places for key in first.keys):
        return None
    return [places[key] for key in first.keys]


def is_unquantized(record: Record) -> bool:
    """Whether this is the model as it is, and not quantized by whoever made it."""
    return record.cell.method == "none" and record.cell.stored_as is None


def score_of(record: Record, key: ScoreKey) -> Score | None:
    """A finished cell's score by task, metric and filter."""
    if record.status != "ok":
        return None
    task, metric, filter = key
    for score in record.scores:
        if score.metric == metric and score.task == task and score.filter == filter:
            return score
    return None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _signed(value: float, places: int) -> str:
    text = plain(value, places)
    if text.strip("-0.") == "":  # no sign of nothing
        return text.lstrip("-")
    return text if text.startswith("-") else f"+{text}"
