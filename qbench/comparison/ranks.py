"""Who is better at equal measured bits: by paired differences, not by the order of the means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qbench.comparison.judging import judged_by
from qbench.comparison.matching import Match, cell_key
from qbench.comparison.pairs import Pairs, ScoreKey, score_of
from qbench.records import Cell, Record

EQUAL_BITS = 0.05  # measured bits per weight that count as none
Draws = list[tuple[Record, Record]]  # of a base and a candidate, for `Pairs.over`
MOST_RANKED = 300  # cells of one model and protocol; each is paired with all others
# Of a cell, beside model, scheme, method and parameters: what decides which model is quantized,
# but for the seed.
MADE_BY = ("revision", "source", "calibration", "stored_as", "recipe", "quantization")


def winners(records: Sequence[Record], key: ScoreKey, pairs: Pairs) -> set[str]:
    """Ids of the cells that are better, pair by pair, than all their rivals.

    Rivals are the cells of the same model, judged alike, that have as many measured bits (within
    EQUAL_BITS) or fewer, but for draws of the cell itself. One of as many must be among them: more
    bits alone win nothing. Cells of several draws are better by all of them together
    (`_shared_draws`). Of a rival without items, and of a cell that was judged otherwise
    (`outdone`), nothing is known but its mean, which must be worse.
    """
    best = set()
    beaten = outdone(records, key)
    for group in _groups(records, key):
        for cell, own, rivals in _leaders(group, key):
            if cell.id not in beaten and _wins(cell, own, rivals, key, pairs):
                best.add(cell.id)
    return best


def _wins(
    cell: Record, own: Sequence[Record], rivals: Sequence[Record], key: ScoreKey, pairs: Pairs
) -> bool:
    """Whether a cell is better than all rivals. own: the draws of the cell, itself among them."""
    known = [rival for rival in rivals if pairs.items(rival, key) is not None]
    lost = [rival for rival in rivals if pairs.items(rival, key) is None]
    if pairs.items(cell, key) is None or not any(_costs(cell, rival) for rival in known):
        return False
    badness = _columns([cell, *lost], key)[2]
    if (badness[1:] <= badness[0]).any():
        return False
    mine = [draw for draw in own if pairs.items(draw, key) is not None]
    for family in _families(known):
        draws = _shared_draws(family, mine)
        for contest in [draws] if draws else [[(rival, cell)] for rival in family]:
            contrast = pairs.over(contest, key)
            if contrast is None or not contrast.is_better:
                return False
    return True


def ranks(records: Sequence[Record], key: ScoreKey, pairs: Pairs) -> dict[str, int]:
    """1 and how many rivals are better, pair by pair: cells that cannot be told apart tie.

    Draws count as one rival (`_rivals`): a method is ahead once, however often it was drawn. A cell
    without items has no place and is nobody's rival; nor has one a place that cannot be paired with
    a rival, since their items are others. None of more than MOST_RANKED cells, whose pairs would
    take minutes.
    """
    places = {}
    for group in _groups(records, key):
        if len(group) > MOST_RANKED:
            continue
        known = [cell for cell in group if pairs.items(cell, key) is not None]
        for cell, rivals in _rivals(known):
            contrasts = [pairs.over(draws, key) for draws in rivals]
            paired = [contrast for contrast in contrasts if contrast is not None]
            if len(paired) == len(rivals):
                places[cell.id] = 1 + sum(contrast.is_better for contrast in paired)
    return places


def outdone(records: Sequence[Record], key: ScoreKey) -> set[str]:
    """Ids of the cells than which one of the same model that was judged otherwise is better.

    It has a better mean at as many measured bits or fewer, and is no draw of the cell itself. The
    two cannot be paired, so that it is not known which of them is ahead.
    """
    ways: dict[str, list[list[Record]]] = {}
    for group in _groups(records, key):
        ways.setdefault(group[0].cell.model, []).append(group)
    beaten = set()
    for groups in ways.values():
        if len(groups) == 1:
            continue
        way = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        cells = [record for group in groups for record in group]
        bits, family, badness = _columns(cells, key)
        for index, cell in enumerate(cells):
            others = (bits <= bits[index] + EQUAL_BITS) & (family != family[index])
            if (others & (way != way[index]) & (badness < badness[index])).any():
                beaten.add(cell.id)
    return beaten


def _groups(records: Sequence[Record], key: ScoreKey) -> list[list[Record]]:
    """The quantized cells with this score, those of one model that were judged alike together."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        if record.cell.scheme and record.bits_per_weight.get("total") and score_of(record, key):
            alike = (record.cell.model, *judged_by(record, key[0]))
            groups.setdefault(alike, []).append(record)
    return list(groups.values())


def _costs(rival: Record, cell: Record) -> bool:
    """Whether a rival takes no more bits than a cell."""
    return rival.bits_per_weight["total"] <= cell.bits_per_weight["total"] + EQUAL_BITS


def _drawn(cell: Cell) -> tuple[Any, ...]:
    """What the draws of one cell have in common: all that makes a quantized model but the seed."""
    return cell_key(cell, MADE_BY)


def _families(group: Sequence[Record]) -> list[list[Record]]:
    """The draws of each cell of a group, by their seeds."""
    families: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(group, key=lambda record: record.cell.seed):
        families.setdefault(_drawn(record.cell), []).append(record)
    return list(families.values())


def _shared_draws(base: Sequence[Record], candidate: Sequence[Record]) -> Draws:
    """The draws of two families by which both are judged; empty where either has but one.

    A draw moves all items of a model together, which the items of one draw do not show. Draws are
    paired as in `Match`: by their seeds, and what draws nothing goes with all of the other's.
    """
    if len(base) == len(candidate) == 1:
        return []
    first, second = (
        {record.cell.seed: record for record in family} for family in (base, candidate)
    )
    draws = Match(base[0].cell.model, first, second).draws()
    return draws if len(draws) > 1 else []


def _rivals(group: Sequence[Record]) -> Iterator[tuple[Record, list[Draws]]]:
    """Every cell with what it is held against: draws of itself and of a rival of no more bits.

    One entry for each such rival, by their shared draws, which say the same of all draws of a cell.
    Else it is one draw of the rival: that of the cell's seed, which has cut the same calibration
    windows, or the first.
    """
    families = _families(group)
    for mine in families:
        others = [family for family in families if family is not mine]
        shared = [_shared_draws(mine, family) for family in others]
        for cell in mine:
            rivals = []
            for family, draws in zip(others, shared, strict=True):
                near = [rival for rival in family if _costs(rival, cell)]
                alike = [rival for rival in near if rival.cell.seed == cell.cell.seed]
                if near:
                    rivals.append(draws or [(cell, (alike or near)[0])])
            yield cell, rivals


def _leaders(
    group: Sequence[Record], key: ScoreKey
) -> Iterator[tuple[Record, list[Record], list[Record]]]:
    """The cells that may be better than every rival, with their own draws, and the rivals.

    None without a rival of equal bits. Of each rival some draw must have a worse mean than some
    draw of the cell. Few cells are left, so that few pairs are taken.
    """
    bits, family, badness = _columns(group, key)
    least, most = (np.full(family.max() + 1, end) for end in (np.inf, -np.inf))
    np.minimum.at(least, family, badness)
    np.maximum.at(most, family, badness)
    for index, cell in enumerate(group):
        mine = (bits <= bits[index] + EQUAL_BITS) & (family != family[index])
        equal = mine & (bits >= bits[index] - EQUAL_BITS)
        if equal.any() and most[family[mine]].min() > least[family[index]]:
            own = np.flatnonzero(family == family[index])
            yield cell, [group[int(k)] for k in own], [group[int(k)] for k in np.flatnonzero(mine)]


def _columns(records: Sequence[Record], key: ScoreKey) -> tuple[Any, Any, Any]:
    """(cells,) each: measured bits, a number that draws of one cell share, and badness.

    The latter is the mean, with the sign that makes a smaller one better.
    """
    bits = np.array([record.bits_per_weight["total"] for record in records])
    drawn = [_drawn(record.cell) for record in records]
    numbers = {name: index for index, name in enumerate(dict.fromkeys(drawn))}
    scores = [score_of(record, key) for record in records]
    sign = -1.0 if scores[0] is not None and scores[0].higher_is_better else 1.0
    badness = np.array([np.inf if score is None else sign * score.value for score in scores])
    return bits, np.array([numbers[name] for name in drawn]), badness
