"""What a task is to the runner: it names its data and protocol, then judges one model.

spec = task.spec(source, limit=200)      # goes into the cell, and so into its identity
outcome = task.evaluate(Context(model, tokenizer, source), spec)
outcome.scores, outcome.samples          # aggregates with standard errors, every item
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from qbench.errors import MethodError
from qbench.records import Score, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qbench.tasks.data import Source
    from qbench.tasks.declaration import Cost, DeclaredScore, Table


class Outcome(NamedTuple):
    """Scores, whose path `samples` the runner fills in, and a JSON-able row per item and filter."""

    scores: tuple[Score, ...]
    samples: list[dict[str, Any]]


def _silent(fraction: float, text: str) -> None:
    pass


@dataclass(frozen=True)
class Unquantized:
    """The model before quantization, for a task that compares with it.

    load: gives that model, on its device, and its tokenizer. file: where a task may keep what it
    computed from that model for a spec; cells share it, and it is removed when the run is complete.
    """

    load: Callable[[], tuple[Any, Any]]
    file: Callable[[TaskSpec], Path]


@dataclass
class Context:
    """One model under test.

    model, tokenizer: of transformers. progress: called with the fraction done (0..1) and a text.
    unquantized: None where there is only the model under test. cache: what tasks of one cell share.
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
    """One thing to judge a model by. `qbench.tasks.declaration.Declaration` explains the facts."""

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
        """Where its scores stand in reports."""

    @property
    def has_subjects(self) -> bool:
        """Whether it also gives scores of parts of itself, named `NAME_PART`."""

    @property
    def batch_size(self) -> int | None:
        """Items at a time; None for what the run is set to."""

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
    ) -> TaskSpec:
        """The evaluation on this data, defaults filled in; what has no meaning here stays None."""

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Compute what is needed of the unquantized model, before any task is evaluated."""

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Judge the model. Leaves it, the tokenizer and the global random state as they were."""


def mean_score(
    task: str, metric: str, values: Sequence[float], *, higher: bool, filter: str = "none"
) -> Score:
    """The mean, with standard error sqrt(variance / n); MethodError where one is not finite."""
    bad = sum(not math.isfinite(value) for value in values)
    if bad:
        raise MethodError(
            f"{task}: {metric} is not finite on {bad} of {len(values)} items; "
            "the quantized model gives NaN or infinity"
        )
    n = len(values)
    mean = math.fsum(values) / n
    stderr = None
    if n > 1:
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        stderr = math.sqrt(variance / n)
    return Score(
        task=task,
        metric=metric,
        filter=filter,
        value=mean,
        stderr=stderr,
        n=n,
        higher_is_better=higher,
        suspicion=_suspicion(values),
    )


def _suspicion(values: Sequence[float]) -> str | None:
    """What is odd about the values of the items: a measure that is the same on all of them.

    Right or wrong, 1 or 0, may well be so, and so may a divergence of 0.
    """
    if len(values) > 1 and values[0] not in (0.0, 1.0) and len(set(values)) == 1:
        return f"the same value on all {len(values)} items"
    return None


def perplexity_score(nll: Score) -> Score:
    """exp of a mean negative log-likelihood; its standard error by the delta method.

    Raises MethodError where the exponential overflows.
    """
    if nll.value > 700:
        raise MethodError(
            f"{nll.task}: exp of the mean nll {nll.value:.4g} overflows; "
            "the quantized model is broken"
        )
    value = math.exp(nll.value)
    stderr = None if nll.stderr is None else value * nll.stderr  # d exp(m) = exp(m) dm
    changes = {"metric": "perplexity", "value": value, "stderr": stderr, "higher_is_better": False}
    return nll.model_copy(update=changes)
