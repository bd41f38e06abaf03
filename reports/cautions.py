"""What may be wrong with the evaluations of a run, each thing once, for tables and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qbench.comparison.lint import lint
from qbench.comparison.pairs import Pairs
from qbench.records import Caution, Record, labels
from qbench.reports.cell_names import ordered


def summary(records: Sequence[Record], pairs: Pairs) -> list[tuple[str, str]]:
    """(which cells, what): a sentence that several cells share stands once.

    A cell is named by its model and label; of several their number is given.
    """
    cells: dict[Caution, list[Record]] = {}
    cautions = lint(ordered(records), pairs)
    told = labels(record.cell for record in records)
    for record in ordered(records):
        for caution in cautions.get(record.id, []):
            cells.setdefault(caution, []).append(record)
    lines = []
    for caution, members in cells.items():
        task = f"{caution.task}: " if caution.task else ""
        models = ", ".join(dict.fromkeys(record.cell.model for record in members))
        # What is said of a score stands at the first cell of each model that has it.
        where = models if caution.kind == "indistinct" else _named(members, models, told)
        lines.append((where, f"{task}{caution.text}"))
    return lines


def _named(members: Sequence[Record], models: str, told: Mapping[str, str]) -> str:
    if len(members) == 1:
        return f"{models} {told[members[0].cell.id]}"
    return f"{len(members)} cells of {models}"
