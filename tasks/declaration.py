"""What a task declares: its data, what an item costs, its scores and their place in reports.

Readable without torch and without lm-eval, so that a report and a plan need neither. A YAML file in
this folder has these keys and those of `qbench.tasks.harness.HarnessTask`; a task in Python gives
the same facts as the defaults of its fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from qbench.records import TaskSpec
    from qbench.tasks.contract import Context


Unit = Literal["", "%", "nats", "nats per token"]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OtherLayout(_Declared):
    """A second form in which a folder may hold a table, and how the hub's columns follow from it.

    folder: its place in a data folder. files: split -> name of its parquet file, without the
    ending. columns: hub column -> an expression of Jinja over the columns of that file, such as
    `choices[0]`; lm-eval's own templates are of the same language.
    """

    folder: str
    files: dict[str, str]
    columns: dict[str, str]


class Table(_Declared):
    """One data set.

    folder: its place in a data folder. splits, columns: what it must have, by the hub's names.
    repository, config: where it is on the hub. licence: as its publisher says. running_text: its
    column `text` is to be joined, and there are no questions. texts: how many of them are taken,
    the first ones, None for all. shards: split -> the file on the hub of which they are, where a
    split has many. other_layout: read where a folder has no file of the first form. example: a row
    of our own in these columns, for tests.
    """

    folder: str
    splits: tuple[str, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    repository: str
    config: str | None
    licence: str
    running_text: bool = False
    texts: int | None = Field(default=None, ge=1)
    shards: dict[str, str] = {}
    example: dict[str, Any] | None = None
    other_layout: OtherLayout | None = None


class Cost(_Declared):
    """What judging one item takes; for the estimate of a run, so a tenth more or less is no matter.

    items: how many the whole data set asks; of running text, windows. tokens: of one item with all
    its choices, without examples; what choices share counts once. tokens_per_shot: of one example
    in the prompt. shared_shots: whether all items of a subject have the same examples, which are
    then read once. written: tokens that the model writes for one item. subjects: how many times a
    limit counts. pass_share: of one pass over the windows, for tasks that share it.
    """

    items: int = Field(ge=1)
    tokens: int = Field(default=0, ge=0)
    tokens_per_shot: int = Field(default=0, ge=0)
    shared_shots: bool = False
    written: int = Field(default=0, ge=0)
    subjects: int = Field(default=1, ge=1)
    pass_share: float = Field(default=1.0, gt=0, le=1)

    def asked(self, limit: int | None) -> int:
        """How many items are judged under a limit."""
        if limit is None:
            return self.items
        return limit * self.subjects

    def read(self, limit: int | None, shots: int) -> int:
        """How many tokens the model reads of prompts and choices under a limit."""
        items = self.asked(limit)
        prompts = min(items, self.subjects) if self.shared_shots else items
        return items * self.tokens + prompts * shots * self.tokens_per_shot


class DeclaredScore(_Declared):
    """One score that a task gives.

    unit: `%` for a share, which is shown times 100; empty for a plain number. headline: a column of
    the wide table and a picture. screen: its short name on the screen; None leaves it to the files.
    """

    metric: str
    filter: str = "none"
    unit: Unit = ""
    better: Literal["higher", "lower"]
    headline: bool = False
    screen: str | None = None

    @property
    def higher_is_better(self) -> bool:
        """The direction, as records store it."""
        return self.better == "higher"


class Declaration(_Declared):
    """The facts about one task; tasks derive from it.

    name: what the user types, and the name of its table. about, paper: for `qbench list tasks`.
    table: the data set, or the name of another task's. cost: of one item. scores: in the order of
    reports. order: where these stand among those of other tasks, smallest first, then by name.
    batch_size: items at a time, None for the preset's. needs_unquantized: `prepare` is called with
    the unquantized model at hand before any task of the cell is evaluated.
    """

    name: str
    about: str
    paper: str = ""
    kind: Literal["multiple_choice", "generation", "loglikelihood", "text"]
    table: Table | str
    cost: Cost
    scores: tuple[DeclaredScore, ...] = Field(min_length=1)
    order: int = 1000
    batch_size: int | None = Field(default=None, ge=1)
    needs_unquantized: bool = False

    @property
    def table_name(self) -> str:
        """By which name the data sources know its table."""
        return self.table if isinstance(self.table, str) else self.name

    @property
    def has_subjects(self) -> bool:
        """Whether it also gives scores of parts of itself, named `NAME_PART`."""
        return False

    def describe(self) -> str:
        """One line for `qbench list tasks`."""
        return f"{self.about} ({self.paper})" if self.paper else self.about

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Nothing to be done before the evaluation."""
