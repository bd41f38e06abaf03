"""What became of each answer: right and wrong ones, and wrong ones that became others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["right to wrong", "wrong to right", "wrong to another wrong"]


@dataclass(frozen=True)
class Flips:
    """How many of `items` answers changed, by kind.

    Accuracies may agree where answers do not: Dutta et al. 2024, arXiv:2407.09141.
    """

    items: int
    lost: int
    gained: int
    moved: int

    @property
    def share(self) -> float:
        """Of items whose answer changed."""
        return (self.lost + self.gained + self.moved) / self.items if self.items else 0.0


def kind_of(right: tuple[bool, bool], answers: tuple[Hashable, Hashable]) -> Kind | None:
    """The kind of one item's change; None where there is none. Both are (before, after)."""
    if right[0] != right[1]:
        return "right to wrong" if right[0] else "wrong to right"
    if not right[0] and answers[0] != answers[1]:
        return "wrong to another wrong"
    return None


def count(kinds: Sequence[Kind | None]) -> Flips:
    """The kinds of all items, counted."""
    return Flips(
        len(kinds),
        lost=kinds.count("right to wrong"),
        gained=kinds.count("wrong to right"),
        moved=kinds.count("wrong to another wrong"),
    )
