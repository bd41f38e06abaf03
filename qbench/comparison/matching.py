"""Which cells of a base and a candidate are compared with each other, and over which draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qbench.comparison.pairs import is_unquantized
from qbench.errors import ConfigError
from qbench.records import CalibrationSpec, Cell, Record, labels

# What tells cells of one label apart. The rest, such as the method's source, has no name.
TRAITS = ("calibration", "dtype", "device", "batch_size")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    name: as it was typed. folder: of the sample files. label: by which its cells were chosen, empty
    for all.
    """

    name: str
    folder: Path
    records: tuple[Record, ...]
    label: str = ""

    @property
    def quantized(self) -> list[Record]:
        """The quantized cells."""
        return [record for record in self.records if not is_unquantized(record)]


@dataclass(frozen=True)
class Match:
    """A cell of each side, as draws by seed: what is compared with what.

    model: their name. base, candidate: by seed; one is empty where that side has no such cell.
    traits: what tells this one from others of its label, in words.
    """

    model: str
    base: Mapping[int, Record]
    candidate: Mapping[int, Record]
    traits: str = ""

    @property
    def label(self) -> str:
        """`gptq 3b g64`, or both where they differ, and the traits."""
        names = dict.fromkeys(
            record.cell.label for side in (self.base, self.candidate) for record in side.values()
        )
        return f"{' -> '.join(names)} {self.traits}".rstrip()

    @property
    def is_random(self) -> bool:
        """Whether another calibration sample or seed would make another model."""
        return not (_is_fixed(self.base) and _is_fixed(self.candidate))

    @property
    def seeds(self) -> list[tuple[int, int]]:
        """Of base and candidate, for every draw; what has a single one goes with all of others'.

        Draws are shared: the same seed cuts the same calibration windows for both. Where both have
        several and none in common, they are taken in their order, as fresh draws of either.
        """
        base, candidate = sorted(self.base), sorted(self.candidate)
        if not base or not candidate:
            return []
        shared = sorted(self.base.keys() & self.candidate.keys())
        if len(base) == 1 and _is_fixed(self.base) and len(candidate) > 1:
            return [(base[0], seed) for seed in candidate]
        if len(candidate) == 1 and _is_fixed(self.candidate) and len(base) > 1:
            return [(seed, candidate[0]) for seed in base]
        if not shared and (_is_fixed(self.base) or _is_fixed(self.candidate)):
            return [(base[0], candidate[0])]
        if not shared and len(base) > 1 and len(candidate) > 1:
            return list(zip(base, candidate, strict=False))
        return [(seed, seed) for seed in shared]

    def draws(self) -> list[tuple[Record, Record]]:
        """(base, candidate) of every draw."""
        return [(self.base[seed], self.candidate[other]) for seed, other in self.seeds]

    def first(self, draws: int) -> Match:
        """With its first draws alone, so many of them; 0 for all. The same where it has none."""
        kept = self.seeds[:draws]
        if not kept:
            return self
        base = {seed: self.base[seed] for seed, _ in kept}
        candidate = {seed: self.candidate[seed] for _, seed in kept}
        return replace(self, base=base, candidate=candidate)

    def lacking(self, draws: int) -> list[str]:
        """Why there are fewer draws than these, or none, and which to make; else empty.

        What draws nothing has no more than one.
        """
        there = len(self.seeds)
        sides = (self.base, self.candidate)
        if not there:
            seeds = [", ".join(map(str, sorted(side))) for side in sides]
            return [
                f"seed: {seeds[0]} against {seeds[1]}, none in common; run one side "
                "with the --seed of the other, or both with --replicates 4"
            ]
        if self.is_random and there < draws:
            return [
                f"{there} draws are in common, and the look is after {draws}; run both with "
                f"--replicates {draws} or more"
            ]
        return []

    def notes(self) -> list[str]:
        """What a reader must know of the seeds: those without a like, and none in common."""
        notes = []
        left = {
            "base": self.base.keys() - {seed for seed, _ in self.seeds},
            "candidate": self.candidate.keys() - {seed for _, seed in self.seeds},
        }
        for name, seeds in left.items():
            if seeds:
                said = ", ".join(map(str, sorted(seeds)))
                notes.append(f"seeds of the {name} without a like do not count: {said}")
        several = len(self.base) > 1 and len(self.candidate) > 1
        if several and not self.base.keys() & self.candidate.keys():
            notes.append(
                "no seed is in common, so fresh draws are held against each other; with the same "
                "ones (--seed) the noise that they share would cancel"
            )
        return notes


def chosen(side: Side, words: str) -> Side:
    """The side with those cells that a label chooses: an id, a whole label, or the start of some.

    A whole label, such as that of default parameters, is not the start of others. The unquantized
    model stays. ConfigError where nothing is chosen.
    """
    told = labels(record.cell for record in side.quantized)
    kept = [
        record
        for record in side.quantized
        if words in (record.id, record.cell.label, told[record.id])
    ]
    if not kept:
        start = f"{words} "
        kept = [record for record in side.quantized if record.cell.label.startswith(start)]
    if not kept:
        known = ", ".join(dict.fromkeys(told.values()))
        plain = [record for record in side.records if is_unquantized(record)]
        if any(words in (record.id, record.cell.label) for record in plain):
            raise ConfigError(
                f"{side.name}:{words} is the unquantized model, which is no side of a comparison; "
                f"give one of {known or 'a run with quantized cells'}"
            )
        raise ConfigError(
            f"{side.name} has no cell {words!r}; it has {known or 'no quantized cell'}"
        )
    return replace(_with(side, kept), name=f"{side.name}:{words}", label=words)


def matched(base: Side, candidate: Side) -> list[Match]:
    """What is compared: cells of the same label, or of the same scheme where sides have one method.

    Where both sides were chosen by a whole label, their schemes may differ, too. Of TRAITS, those
    count that tell cells of a side apart. A cell of the candidate that the base lacks, or the other
    way round, is a match with one side. ConfigError where a side has no cell, and where nothing has
    a counterpart since a name stands for several variants, of which the other side has none.
    """
    for side in (base, candidate):
        if not side.quantized:
            raise ConfigError(
                f"{side.name} holds no quantized cell, so there is nothing to compare"
            )
    sides = (_like(base, candidate), _like(candidate, base))
    by_scheme = all(len({_variant(row.cell) for row in side.quantized}) == 1 for side in sides)
    traits = [name for name in TRAITS if any(_varies(side, name) for side in sides)]
    groups = [_grouped(side.quantized, by_scheme, traits) for side in sides]
    if all(_is_whole(side) for side in sides):
        groups = [{(key[0], *key[2:]): draws for key, draws in group.items()} for group in groups]
    matches = []
    for key in dict.fromkeys([*groups[0], *groups[1]]):
        draws = [group.get(key, {}) for group in groups]
        cell = next(iter((draws[0] or draws[1]).values())).cell
        words = " ".join(_trait(cell, name) for name in traits)
        matches.append(Match(cell.model, draws[0], draws[1], words))
    if not any(match.base and match.candidate for match in matches):
        _refuse_several(sides)
    return matches


def cell_key(cell: Cell, traits: Sequence[str] = TRAITS) -> tuple[Any, ...]:
    """What tells a cell from the others of a run, but for its seed and what has no name."""
    values = (getattr(cell, name) for name in traits)
    return (cell.model, cell.scheme, _variant(cell), *values)


def _like(side: Side, other: Side) -> Side:
    """Of a side that a method's name chose, against one variant: what stands for the method.

    That variant is a whole label, or all that the other side has, and none of this one. In its
    schemes, the method's cells of default parameters stand for it, or those nearest to what most
    of its cells have: a preset or --set gives all of them the same.
    """
    if any(row.cell.method != side.label for row in side.quantized):
        return side
    variants = [{_variant(row.cell) for row in each.quantized} for each in (side, other)]
    if not _is_whole(other) and (len(variants[1]) > 1 or variants[0] & variants[1]):
        return side
    schemes = {row.cell.scheme for row in other.quantized}
    kept = [row for row in side.quantized if row.cell.scheme in schemes]
    plain = [row for row in kept if not row.cell.params]
    if not plain and kept:
        counts = Counter(item for row in kept for item in row.cell.params.items())
        usual = {item for item, count in counts.items() if count > len(kept) / 2}
        away = [len(usual ^ row.cell.params.items()) for row in kept]
        plain = [row for row, count in zip(kept, away, strict=True) if count == min(away)]
    return _with(side, plain) if len({_variant(row.cell) for row in plain}) == 1 else side


def _refuse_several(sides: Sequence[Side]) -> None:
    """ConfigError, with the labels, where a name chose several variants, and none has its like.

    Not so where models or schemes are to blame, of which the sides have none in common.
    """
    variants = [{_variant(row.cell) for row in side.quantized} for side in sides]
    places = [{(row.cell.model, row.cell.scheme) for row in side.quantized} for side in sides]
    if variants[0] & variants[1] or not places[0] & places[1]:
        return
    for side, own in zip(sides, variants, strict=True):
        if side.label and len(own) > 1:
            known = ", ".join(sorted({row.cell.label for row in side.quantized}))
            raise ConfigError(
                f"{side.name} stands for several variants, and none of them is on the other side; "
                f"give one of them: {known}"
            )


def _is_whole(side: Side) -> bool:
    """Whether a whole label, or an id, chose what is there: cells of one method and one scheme."""
    schemes = {row.cell.scheme for row in side.quantized}
    named = all(side.label in (row.id, row.cell.label) for row in side.quantized)
    return named and len(schemes) == 1


def _with(side: Side, quantized: Sequence[Record]) -> Side:
    """The side with these of its quantized cells."""
    unquantized = [record for record in side.records if is_unquantized(record)]
    return replace(side, records=(*quantized, *unquantized))


def _varies(side: Side, trait: str) -> bool:
    """Whether cells of a side that are alike in what has a label differ in this."""
    seen: dict[tuple[Any, ...], set[Any]] = {}
    for record in side.quantized:
        values = seen.setdefault(cell_key(record.cell, ()), set())
        values.add(getattr(record.cell, trait))
    return any(len(values) > 1 for values in seen.values())


def _grouped(
    records: Sequence[Record], by_scheme: bool, traits: Sequence[str]
) -> dict[tuple[Any, ...], dict[int, Record]]:
    """By model, scheme, traits and, unless a side has one method only, method and parameters."""
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in sorted(records, key=_order):
        model, scheme, variant, *values = cell_key(record.cell, traits)
        key = (model, scheme, None if by_scheme else variant, *values)
        groups.setdefault(key, {})[record.cell.seed] = record
    return groups


def _order(record: Record) -> tuple[object, ...]:
    cell = record.cell
    bits = cell.scheme.width if cell.scheme else 0
    windows = (cell.calibration.samples, cell.calibration.length) if cell.calibration else ()
    # Of records of a cell that differ in their evaluation, the last one that is finished stays.
    return (cell.model, bits, cell.label, windows, cell.seed, record.status == "ok")


def _variant(cell: Cell) -> tuple[str, str]:
    return cell.method, repr(sorted(cell.params.items()))


def _trait(cell: Cell, name: str) -> str:
    """`calibration 32x256 of 2c5362b7` or `dtype bfloat16`."""
    value = getattr(cell, name)
    if isinstance(value, CalibrationSpec):
        value = f"{value.samples}x{value.length} of {value.sha256[:8]}"
    return f"{name} {value}"


def _is_fixed(draws: Mapping[int, Record]) -> bool:
    """Whether nothing in the method is random, so that its one draw stands for all.

    A method that calibrates draws its sample, and one with a seed its random numbers.
    """
    for entry in draws.values():
        known = entry.parameters | entry.cell.params  # older records have those alone that were set
        if entry.cell.calibration is not None or isinstance(known.get("seed"), int):
            return False
    return True
