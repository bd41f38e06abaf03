"""How far two programs are apart that compute the same model, item by item.

Both were asked the same items with the same tokens, so their likelihoods differ by rounding, by how
sums are ordered, and by whatever one of them does wrong. A flip is an item whose answer is another:
the likeliest choice, whether a continuation is the likeliest one, or the text that is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qbench.errors import ConfigError

Row = Mapping[str, Any]


class Parity(NamedTuple):
    """Of one task.

    items: compared. flips: how many answers differ. answered: how many answers there are, of which
    an item that is read by several filters has several. numbers: log-probabilities, in nats: of
    choices, of continuations, or per token of windows. largest, mean: of their absolute
    differences; None where there are no numbers.
    """

    items: int
    flips: int
    answered: int
    numbers: int
    largest: float | None
    mean: float | None


def parity(rows: Sequence[Row], others: Sequence[Row]) -> Parity:
    """Compare the samples of one task; ConfigError where they are not of the same items."""
    if [_item(row) for row in rows] != [_item(row) for row in others]:
        raise ConfigError("the two evaluations are not of the same items; ask both alike")
    differences: list[float] = []
    flips = answered = 0
    for row, other in zip(rows, others, strict=True):
        pairs = zip(_numbers(row), _numbers(other), strict=True)
        differences += [abs(mine - theirs) for mine, theirs in pairs]
        answer = _answer(row)
        if answer is not None:
            answered += 1
            flips += answer != _answer(other)
    items = len({row["doc_id"] for row in rows})
    if not differences:
        return Parity(items, flips, answered, 0, None, None)
    mean = sum(differences) / len(differences)
    return Parity(items, flips, answered, len(differences), max(differences), mean)


def _item(row: Row) -> tuple[Any, ...]:
    """What says which item a row is about, and how it was read; texts are told by their hashes."""
    hashes = [row.get(key) for key in ("doc_hash", "prompt_hash", "target_hash")]
    return (row["doc_id"], row["filter"], "responses" in row, *hashes)


def _numbers(row: Row) -> list[float]:
    """The log-probabilities in a row."""
    if "loglikelihoods" in row:
        return list(row["loglikelihoods"])
    if "loglikelihood" in row:
        return [row["loglikelihood"]]
    return [-row["nll"]] if "nll" in row else []


def _answer(row: Row) -> Any:
    """What a row's item was answered with; None where it is a likelihood alone."""
    if "loglikelihoods" in row:
        logs = row["loglikelihoods"]
        return logs.index(max(logs))
    if "responses" in row:
        return row["responses"]
    return row.get("acc")
