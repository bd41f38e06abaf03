"""What a task is to the runner: it names its data and protocol, then judges one model.

spec = task.spec(source, limit=200)                     # goes into the cell, and so into its identity
outcome = task.evaluate(Context(model, tokenizer, source), spec)
outcome.scores, outcome.samples                         # aggregates with standard errors, and every item
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from qbench.errors import MethodError
from qbench.records import Score, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qbench.tasks.data import Source
    from qbench.tasks.window_pass import ReferenceLogits


class Outcome(NamedTuple):
    """Scores (their `samples` path is the runner's to fill in) and one JSON-able row per item and filter."""

    scores: tuple[Score, ...]
    samples: list[dict[str, Any]]


def _silent(fraction: float, text: str) -> None:
    pass


@dataclass
class Context:
    """One model under test.

    model, tokenizer: of transformers. reference: log-probabilities of the unquantized model, for
    divergence. progress: called with the fraction done (0..1) and a text. cache: what tasks of one
    cell share.
    """

    model: Any
    tokenizer: Any
    source: Source
    batch_size: int = 8
    reference: ReferenceLogits | None = None
    progress: Callable[[float, str], None] = _silent
    cache: dict[Any, Any] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """One thing to judge a model by."""

    @property
    def name(self) -> str:
        """What the user types."""

    @property
    def kind(self) -> str:
        """`multiple_choice`, `generation` or `text`."""

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
        """The evaluation on this data, defaults filled in; what has no meaning for the task stays None."""

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Judge the model. Leaves the model, the tokenizer and the global random state as they were."""


def mean_score(
    task: str, metric: str, values: Sequence[float], *, higher: bool, filter: str = "none"
) -> Score:
    """The mean with its standard error sqrt(variance / n); MethodError where the model gave no finite number."""
    if not all(map(math.isfinite, values)):
        bad = sum(not math.isfinite(value) for value in values)
        raise MethodError(
            f"{task}: {metric} is not finite on {bad} of {len(values)} items; the quantized model gives NaN or infinity"
        )
    n = len(values)
    mean = math.fsum(values) / n
    spread = (
        math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
        if n > 1
        else None
    )
    return Score(
        task=task,
        metric=metric,
        filter=filter,
        value=mean,
        stderr=spread,
        n=n,
        higher_is_better=higher,
    )
