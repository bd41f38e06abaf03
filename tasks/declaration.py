"""What a task declares: its data, what an item costs, its scores and their place in reports.

This imports neither torch nor lm-eval, so reports and plans need neither. A YAML file in this
folder has these keys and those of `qbench.tasks.harness.HarnessTask`; a task in Python declares the
same as the defaults of its fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from qbench.records import TaskSpec
    from qbench.tasks.contract import Context


Unit = Literal["", "%", "nats", "nats per token"]
Nature = Literal["plain", "perplexity", "relative"]


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

    folder: its place in a data folder.
    splits, columns: those that it must have, by the hub's names.
    repository, config: where it is on the hub.
    licence: as its publisher states it.
    running_text: whether it is text in one column `text`, which is joined, and not questions.
    texts: only the first so many texts are taken, None for all.
    shards: split -> the file on the hub from which texts are taken, where the split has many files.
    other_layout: read where a folder has no file of the first form.
    example: a row that we wrote in these columns, for tests.
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
    """What judging one item costs. It is for the estimate of a run, so 10 % off does not matter.

    items: number of items in the whole data set; windows of running text.
    tokens: of one item with all its choices, without examples; what choices share counts once.
    tokens_per_shot: of one example in the prompt.
    shared_shots: whether all items of a subject have the same examples, which are then read once.
    written: tokens that the model writes for one item.
    subjects: their number; a limit is for each of them.
    pass_share: the task's share of the cost of a pass over the windows, where several tasks use the
        same pass.
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

    unit: `%` for a share, which is shown times 100; empty for a plain number.
    better: whether higher or lower values are better.
    nature: `relative` where the value itself is a difference from the unquantized model, and
        would be 0, or 1 where higher is better, without quantization; `perplexity` where it is e to
        the mean over the rows of `nll`, or of minus `loglikelihood`, so that differences are
        factors; else `plain`. The name of a metric says nothing.
    headline: whether the score has a column in the wide table, and a picture.
    screen: its short name on the screen; None where only the files show it.
    """

    metric: str
    filter: str = "none"
    unit: Unit = ""
    better: Literal["higher", "lower"]
    nature: Nature = "plain"
    headline: bool = False
    screen: str | None = None

    @property
    def higher_is_better(self) -> bool:
        """The direction, as records store it."""
        return self.better == "higher"


class Declaration(_Declared):
    """The facts about one task; tasks derive from it.

    name: what the user types, and the name of its table.
    about, paper: for `qbench list tasks`.
    table: the data set, or the name of the task whose table it reads.
    cost: of one item.
    scores: in the order of reports.
    order: the place of the task in reports, smallest first, then by name.
    batch_size: items at a time, None for the preset's.
    needs_unquantized: whether `prepare` is called, with the unquantized model, before any task of
        the cell is evaluated.
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
        """The name that data sources have for its table."""
        return self.table if isinstance(self.table, str) else self.name

    @property
    def has_subjects(self) -> bool:
        """Whether it also gives scores of parts of itself, named `NAME_PART`."""
        return False

    def describe(self) -> str:
        """One line for `qbench list tasks`."""
        return f"{self.about} ({self.paper})" if self.paper else self.about

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Does nothing: most tasks need nothing before the evaluation."""
