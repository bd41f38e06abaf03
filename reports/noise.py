"""From what models diverge, and below which divergence that is what rounding alone makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qbench.comparison.judging import judged_by, protocol
from qbench.records import Record, Score
from qbench.reports.cell_names import judged_in_words, ordered
from qbench.reports.headline import settings
from qbench.tasks.registry import nature_of

METRIC = "kl_noise"


@dataclass(frozen=True)
class Floor:
    """The largest `kl_noise` of the cells of a model that were judged alike in a task.

    value: in nats per token. way: what tells how they were judged from other cells of the model,
    such as `bfloat16`; empty where the same is said of all.
    """

    model: str
    task: str
    value: float
    way: str = ""

    @property
    def text(self) -> str:
        """`KL below 5.1e-07 nats per token is rounding`."""
        return f"KL below {self.value:.1e} nats per token is rounding"


def noise_floors(records: Sequence[Record]) -> list[Floor]:
    """By model and task, one for each way of judging in which cells have another one."""
    places: dict[tuple[str, str], dict[tuple[object, ...], tuple[float, Record]]] = {}
    for record in ordered(records):
        for score in record.scores:
            if _is_noise(score) and score.value > 0:
                ways = places.setdefault((record.cell.model, score.task), {})
                alike = judged_by(record, score.task)
                known = ways.get(alike, (0.0, record))
                ways[alike] = max(known, (score.value, record), key=lambda entry: entry[0])
    floors = []
    for (model, task), ways in places.items():
        several = [Floor(model, task, value) for value, _ in ways.values()]
        if len({floor.text for floor in several}) == 1:
            floors.append(several[0])
            continue
        words = _in_words([record for _, record in ways.values()], task)
        for floor, way in zip(several, words, strict=True):
            floors.append(Floor(model, task, floor.value, way))
    return floors


def _is_noise(score: Score) -> bool:
    return score.metric == METRIC and nature_of(score.task, score.metric) == "relative"


def noise_lines(records: Sequence[Record]) -> list[str]:
    """A sentence for each of them, and for each model that was quantized already."""
    lines = []
    for floor in noise_floors(records):
        way = f", {floor.way}" if floor.way else ""
        lines.append(
            f"{floor.task} of {floor.model}{way}: a {floor.text}, as far as the model before "
            "quantization is from its own reference, kept in float16, where its products have "
            "other shapes."
        )
    return lines + _stored(records)


def _stored(records: Sequence[Record]) -> list[str]:
    """A sentence for each model that was quantized already when its cells were quantized."""
    lines = []
    for record in ordered(records):
        cell = record.cell
        relative = any(nature_of(score.task, score.metric) == "relative" for score in record.scores)
        if cell.scheme is not None and cell.stored_as is not None and relative:
            lines.append(
                f"{cell.model} is quantized already ({cell.stored_as}): its cells' divergences are "
                "from the model as it is stored, and not from an unquantized one."
            )
    return list(dict.fromkeys(lines))


def _in_words(records: Sequence[Record], task: str) -> list[str]:
    """Of each, what of its way of judging differs among them, with how it was asked."""
    specs = [protocol(record, task) for record in records]
    known = [spec for spec in specs if spec is not None]
    words = []
    for spec, way in zip(specs, judged_in_words(records), strict=True):
        asked = "" if spec is None else settings(spec, known)
        words.append(", ".join(part for part in (way, asked) if part))
    return words
