"""What the runner asks of a task: to state its data and protocol, and then to judge one model.

spec = task.spec(source, limit=200)      # goes into the cell, and so into its identity
outcome = task.evaluate(Context(model, tokenizer, source), spec)
outcome.scores, outcome.samples          # aggregates with standard errors, every item
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from qbench.records import Score, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qbench.tasks.data import Source
    from qbench.tasks.declaration import Cost, DeclaredScore, Table


class Outcome(NamedTuple):
    """What a task says about a model.

    scores: the runner fills in their path `samples`; their directions and units are as declared.
    samples: a JSON-able row for each item and filter, with the filter's name as `filter`, and the
    item's value under each metric, of which the score is the mean. A row says which item it is
    about by `doc_hash`, the hash of the item, or by a `doc_id` of its own: cells are compared item
    by item. Rows of the same `cluster`, such as an article or a subject, are not independent.
    facts: JSON-able, for the record: how the scores were computed, and what was unusual.
    `qbench.tasks.outcome.checked` refuses what is otherwise.
    """

    scores: tuple[Score, ...]
    samples: list[dict[str, Any]]
    facts: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple has no factory, and it is not changed


def _silent(fraction: float, text: str) -> None:
    pass


@dataclass(frozen=True)
class Unquantized:
    """The model before quantization, for a task that compares with it.

    load: returns that model, on its device, and its tokenizer. file: where a task may keep what it
    computed from that model for a spec; cells share the file, and the last runner removes it.
    """

    load: Callable[[], tuple[Any, Any]]
    file: Callable[[TaskSpec], Path]


@dataclass
class Context:
    """One model under test.

    model, tokenizer: of transformers. source: where data come from. batch_size: items at a time.
    progress: called with the fraction done (0..1) and a text. unquantized: None where there is only
    the model under test. cache: what tasks of one cell share.
    """

    model: Any
    tokenizer: Any
    source: Source
    batch_size: int = 8
    progress: Callable[[float, str], None] = _silent
    unquantized: Unquantized | None = None
    cache: dict[Any, Any] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """What judges a model. `qbench.tasks.declaration.Declaration` explains the properties."""

    @property
    def name(self) -> str:
        """What the user types."""

    @property
    def kind(self) -> str:
        """`multiple_choice`, `generation`, `loglikelihood` or `text`."""

    @property
    def table(self) -> Table | str:
        """Its data set, or the name of another task's."""

    @property
    def cost(self) -> Cost:
        """What judging one item takes."""

    @property
    def scores(self) -> tuple[DeclaredScore, ...]:
        """The scores that it gives, in the order of reports."""

    @property
    def order(self) -> int:
        """Its place in reports: the task with the smallest number is first."""

    @property
    def has_subjects(self) -> bool:
        """Whether it also gives scores of parts of itself, named `NAME_PART`."""

    @property
    def batch_size(self) -> int | None:
        """Items at a time; None for the setting of the run."""

    @property
    def needs_unquantized(self) -> bool:
        """Whether `prepare` is to be called, with `context.unquantized`."""

    def describe(self) -> str:
        """One line for `qbench list tasks`."""

    def spec(
        self,
        source: Source,
        limit: int | None = None,
        num_fewshot: int | None = None,
        length: int | None = None,
        generate: int | None = None,
        spread: int | None = None,
    ) -> TaskSpec:
        """The evaluation on this data, with defaults filled in.

        Parameters: see `TaskSpec`. Those that have no meaning for the task stay None.
        """

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Compute what the task needs of the unquantized model, before any task is evaluated."""

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Judge the model. It, the tokenizer and the global random state stay as they are."""
