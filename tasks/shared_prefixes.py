"""Token sequences that share beginnings, cut into passes that compute a shared beginning once.

The choices of a question share its text, and the questions of a subject share its examples. Sorted,
the sequences are the leaves of a tree from left to right, and how much each shares with the one
before it says all about that tree:

    q q q a        a pass holds a piece of the tree, token by token as a walk meets them:
    q q q b b          q q q a b b c        and token i sees token j <= i where j's branch
    q q q c                                 has not ended before i: i < end[j]

What all sequences of many passes share is a stem: computed first, and kept in the model's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHORTEST_STEM = 32  # tokens; below that a pass of its own costs more than doing it again
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Pass:
    """One call of the model.

    past: tokens of the cache that it continues; what the cache holds beyond them is to be dropped.
    tokens, depth, end (n,): the new tokens; the place of each in its sequence; and up to where,
    exclusively, tokens of this pass see it. scored: sequence -> the tokens of this pass at which
    its continuation is predicted. A stem has none, and is kept in the cache.
    """

    past: int
    tokens: Indices
    depth: Indices
    end: Indices
    scored: dict[int, Indices]

    @property
    def is_chain(self) -> bool:
        """Whether each token sees all before it, as in any text."""
        return bool((self.end == len(self.tokens)).all())

    def visible(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(n, past + n): which tokens of the cache and of this pass each token sees."""
        own = np.arange(len(self.tokens))
        among = (own[None, :] <= own[:, None]) & (own[:, None] < self.end[None, :])
        return np.concatenate([np.ones((len(own), self.past), dtype=bool), among], axis=1)


def passes(
    sequences: Sequence[Sequence[int]],
    scored: Sequence[int],
    budget: int,
    shortest_stem: int = SHORTEST_STEM,
) -> Iterator[Pass]:
    """Passes of at most `budget` new tokens, but for sequences and stems that are longer.

    scored: how many tokens at the end of each sequence predict its continuation, at least 1.
    Each sequence is in exactly one pass's `scored`.
    """
    if sequences:
        tree = _Tree(sequences, scored, budget, shortest_stem)
        yield from tree.cut(0, len(sequences), 0)


class _Tree:
    """Sequences in lexicographic order. shared[i]: tokens that i has in common with i - 1."""

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        scored: Sequence[int],
        budget: int,
        shortest_stem: int,
    ) -> None:
        self.order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
        self.rows = [np.asarray(sequences[i], dtype=np.int64) for i in self.order]
        self.budget = budget
        self.shortest_stem = shortest_stem
        self.lengths = np.array([len(row) for row in self.rows])
        self.first_scored = self.lengths - np.array([scored[i] for i in self.order])
        pairs = zip(self.rows, self.rows[1:], strict=False)
        self.shared = np.array([0, *(_common(a, b) for a, b in pairs)])
        self.new = np.concatenate([[0], np.cumsum(self.lengths - self.shared)])

    def cut(self, low: int, high: int, past: int) -> Iterator[Pass]:
        """The passes of the sequences low..high - 1, whose first `past` tokens are in the cache."""
        if high - low == 1 or self.size(low, high, past) <= self.budget:
            yield self.branches(low, high, past)
            return
        stem = min(self.shared[low + 1 : high].min(), self.first_scored[low:high].min())
        if stem - past >= self.shortest_stem:
            yield _stem(self.rows[low][past:stem], past)
            past = int(stem)
        start, stop = low, low
        for end in self._ends(low, high, past):
            if stop > start and self.size(start, end, past) > self.budget:
                yield from self.cut(start, stop, past)
                start = stop
            stop = end
        yield from self.cut(start, stop, past)

    def size(self, low: int, high: int, past: int) -> int:
        """New tokens of a pass over low..high - 1 that continues `past` tokens."""
        return int(self.lengths[low] - past + self.new[high] - self.new[low + 1])

    def _ends(self, low: int, high: int, past: int) -> list[int]:
        """Where runs of sequences end that share a further stem; of each alone if all share it."""
        shared = self.shared[low + 1 : high] - past
        ends = [int(i) for i in low + 1 + np.flatnonzero(shared < self.shortest_stem)]
        return [*ends, high] if ends else list(range(low + 1, high + 1))

    def branches(self, low: int, high: int, past: int) -> Pass:
        """One pass over the sequences low..high - 1."""
        tokens: list[int] = []
        depth: list[int] = []
        end: list[int] = []
        scored = {}
        path: list[int] = []  # the tokens of this pass that the current sequence runs through
        for index in range(low, high):
            row = self.rows[index]
            common = past if index == low else int(self.shared[index])
            for left in path[common - past :]:
                end[left] = len(tokens)
            fresh = range(len(tokens), len(tokens) + len(row) - common)
            path = path[: common - past] + list(fresh)
            tokens += row[common:].tolist()
            depth += range(common, len(row))
            end += [-1] * len(fresh)
            scored[self.order[index]] = np.array(path[self.first_scored[index] - past :])
        ends = np.array(end)
        ends[ends < 0] = len(tokens)
        return Pass(past, np.array(tokens), np.array(depth), ends, scored)


def _stem(tokens: Indices, past: int) -> Pass:
    count = len(tokens)
    return Pass(past, tokens, past + np.arange(count), np.full(count, count), {})


def _common(a: Indices, b: Indices) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    least = min(len(a), len(b))
    different = np.flatnonzero(a[:least] != b[:least])
    return int(different[0]) if len(different) else least
