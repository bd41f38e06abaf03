"""Which cells of a base and a candidate are held against each other, and over which draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qbench.comparison.pairs import is_unquantized
from qbench.errors import ConfigError
from qbench.records import Record


@dataclass(frozen=True)
class Side:
    """What is compared. name: as it was typed. folder: where the sample files lie."""

    name: str
    folder: Path
    records: tuple[Record, ...]

    @property
    def quantized(self) -> list[Record]:
        """The cells that something was done to."""
        return [record for record in self.records if not is_unquantized(record)]


@dataclass(frozen=True)
class Match:
    """A cell of each side, as draws by seed: what is compared with what.

    model: their name. bits: nominal, for the order of tables. base, candidate: labels, of which one
    is missing where that side has no such cell.
    """

    model: str
    scheme: str
    base: Mapping[int, Record]
    candidate: Mapping[int, Record]

    @property
    def label(self) -> str:
        """`gptq 3b g64`, or both where they differ."""
        names = dict.fromkeys(
            record.cell.label for side in (self.base, self.candidate) for record in side.values()
        )
        return " -> ".join(names)

    @property
    def is_random(self) -> bool:
        """Whether another calibration sample or seed would make another model."""
        return any(
            record.cell.calibration is not None or "seed" in record.cell.params
            for side in (self.base, self.candidate)
            for record in side.values()
        )

    def draws(self) -> list[tuple[Record, Record]]:
        """(base, candidate) of every finished draw; what has a single one goes with all of others'.

        Draws are shared: the same seed cuts the same calibration windows for both.
        """
        base = {seed: entry for seed, entry in self.base.items() if entry.status == "ok"}
        candidate = {seed: entry for seed, entry in self.candidate.items() if entry.status == "ok"}
        if not base or not candidate:
            return []
        shared = sorted(base.keys() & candidate.keys())
        if len(base) == 1 and _is_fixed(base) and len(candidate) > 1:
            return [(next(iter(base.values())), candidate[seed]) for seed in sorted(candidate)]
        if len(candidate) == 1 and _is_fixed(candidate) and len(base) > 1:
            return [(base[seed], next(iter(candidate.values()))) for seed in sorted(base)]
        if not shared and (_is_fixed(base) or _is_fixed(candidate)):
            return [(next(iter(base.values())), next(iter(candidate.values())))]
        return [(base[seed], candidate[seed]) for seed in shared]


def chosen(side: Side, words: str) -> Side:
    """The side with those cells that a label chooses: an id, a method, or the start of a label.

    The unquantized model stays. ConfigError where nothing is chosen.
    """
    kept = [
        record
        for record in side.quantized
        if record.id == words or f"{record.cell.label} ".startswith(f"{words} ")
    ]
    if not kept:
        labels = ", ".join(dict.fromkeys(record.cell.label for record in side.quantized))
        raise ConfigError(
            f"{side.name} has no cell {words!r}; it has {labels or 'no quantized cell'}"
        )
    unquantized = [record for record in side.records if is_unquantized(record)]
    return Side(f"{side.name}:{words}", side.folder, (*kept, *unquantized))


def matched(base: Side, candidate: Side) -> list[Match]:
    """What is compared: cells of the same label, or of the same scheme where sides have one method.

    A cell of the candidate that the base lacks, or the other way round, is a match with one side.
    ConfigError where a side has no cell.
    """
    for side in (base, candidate):
        if not side.quantized:
            raise ConfigError(
                f"{side.name} holds no quantized cell, so there is nothing to compare"
            )
    names = [{_variant(record) for record in side.quantized} for side in (base, candidate)]
    by_scheme = all(len(entry) == 1 for entry in names)
    groups = [_grouped(side.quantized, by_scheme) for side in (base, candidate)]
    matches = []
    for key in dict.fromkeys([*groups[0], *groups[1]]):
        match = Match(key[0], key[1], groups[0].get(key, {}), groups[1].get(key, {}))
        matches.append(match)
    return matches


def _grouped(
    records: Sequence[Record], by_scheme: bool
) -> dict[tuple[str, ...], dict[int, Record]]:
    """By model, scheme and, unless a side has one method only, method and parameters."""
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for record in sorted(records, key=_order):
        scheme = record.cell.scheme
        key: tuple[str, ...] = (record.cell.model, scheme.written_out if scheme else "")
        if not by_scheme:
            key += _variant(record)
        groups.setdefault(key, {})[record.cell.seed] = record
    return groups


def _order(record: Record) -> tuple[object, ...]:
    cell = record.cell
    bits = cell.scheme.width if cell.scheme else 0
    # Of two records of a cell that differ in their evaluation, the finished one stays.
    return (cell.model, bits, cell.label, cell.seed, record.status == "ok")


def _variant(record: Record) -> tuple[str, ...]:
    return record.cell.method, repr(sorted(record.cell.params.items()))


def _is_fixed(draws: Mapping[int, Record]) -> bool:
    """Whether nothing in the method is random, so that its one draw stands for all."""
    return all(
        entry.cell.calibration is None and "seed" not in entry.cell.params
        for entry in draws.values()
    )
