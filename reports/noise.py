"""Below which divergence a model is as far from the unquantized one as rounding alone makes it."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.records import Record
from qbench.reports.cell_names import ordered

METRIC = "kl_noise"


def noise_floors(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """(model, task) -> the largest `kl_noise` of its cells, in nats per token."""
    floors: dict[tuple[str, str], float] = {}
    for record in ordered(records):
        for score in record.scores:
            if score.metric == METRIC and score.value > 0:
                place = (record.cell.model, score.task)
                floors[place] = max(score.value, floors.get(place, 0.0))
    return floors


def noise_lines(records: Sequence[Record]) -> list[str]:
    """A sentence for each of them."""
    lines = []
    for (model, task), floor in noise_floors(records).items():
        lines.append(
            f"{task} of {model}: a KL below {floor:.1e} nats per token is rounding, as far as the "
            "unquantized model is from itself where its products have other shapes."
        )
    return lines
