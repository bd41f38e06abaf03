"""Numbers that others have published, in tables of their own: `quoted.csv`, and for the page.

They are facts in `quoted.yaml`, each with its paper, table, model and setting. Nothing measured
stands among them, and no table of measured scores has one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from qbench.files.atomic import write_text
from qbench.records import Record
from qbench.reports.headline import require
from qbench.reports.plots import models

FILE = Path(__file__).with_name("quoted.yaml")
NOTICE = (
    "Quoted from publications, measured by others with other code, data and settings: for "
    "orientation, and not comparable with the scores above."
)
READ = {
    "source": "read in the source",
    "second-hand": "read in a summary of the paper, not in the paper",
}
Text = Annotated[str, Field(min_length=1)]


class Quoted(BaseModel):
    """One table of a publication, for one model.

    reading: whether it was read there, or in a summary. models: how the model is called in records,
    lower case, letters and digits alone. setting: calibration and protocol, as far as they are
    known. rows: method, scheme, and a value or None for each of `scores`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    paper: Text
    place: Text
    reading: Literal["source", "second-hand"]
    model: Text
    models: Annotated[tuple[Annotated[str, Field(pattern="^[a-z0-9]+$")], ...], Field(min_length=1)]
    setting: Text
    scores: Annotated[tuple[Text, ...], Field(min_length=1)]
    rows: Annotated[tuple[tuple[str | float | None, ...], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_rows(self) -> Quoted:
        for row in self.rows:
            words = all(isinstance(field, str) for field in row[:2])
            values = all(field is None or isinstance(field, float | int) for field in row[2:])
            if len(row) != 2 + len(self.scores) or not (words and values):
                raise ValueError(
                    f"{row} is not a method, a scheme and {len(self.scores)} values or null"
                )
        return self

    @property
    def source(self) -> str:
        """Paper, place, and whether it was read there."""
        return f"{self.paper}, {self.place}; {READ[self.reading]}"

    @property
    def shown(self) -> list[list[str]]:
        """The rows as texts."""
        return [[_shown(field) for field in row] for row in self.rows]


@cache
def published() -> tuple[Quoted, ...]:
    """Everything in `quoted.yaml`, checked."""
    facts = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Quoted, ...]).validate_python(facts)


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`quoted.csv`: a row for each published number, those of the run's models first."""
    require(records)
    own, others = by_model(models(records))
    rows = []
    for table in (*own, *others):
        for method, scheme, *values in table.rows:
            for score, value in zip(table.scores, values, strict=True):
                if value is not None:
                    rows.append(
                        {
                            "quoted_from": table.paper,
                            "place": table.place,
                            "reading": table.reading,
                            "model": table.model,
                            "setting": table.setting,
                            "method": method,
                            "scheme": scheme,
                            "score": score,
                            "value": value,
                        }
                    )
    return [write_text(folder / "quoted.csv", pd.DataFrame(rows).to_csv(index=False))]


def by_model(names: Sequence[str]) -> tuple[list[Quoted], list[Quoted]]:
    """The tables about these models, and the others.

    names: as records have them: a short name, a hub id or a folder, of which the last part counts.
    """
    asked = {re.sub("[^a-z0-9]", "", Path(name.partition("@")[0]).name.lower()) for name in names}
    own = [table for table in published() if asked & set(table.models)]
    return own, [table for table in published() if table not in own]


def _shown(field: str | float | None) -> str:
    """Two digits after the point, as they are published."""
    if field is None:
        return ""
    return field if isinstance(field, str) else f"{field:.2f}"
