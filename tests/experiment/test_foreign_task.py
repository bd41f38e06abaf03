"""Tasks of other packages in a plan: what they do wrong is one sentence that names them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from qbench.errors import ConfigError
from qbench.experiment import identity
from qbench.experiment.task_identity import task_hash
from qbench.tasks.declaration import Cost, Declaration, DeclaredScore
from qbench.tasks.mini_source import MiniSource


def unreachable(source: Any) -> Any:
    raise RuntimeError("our server is not reachable")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (unreachable, "cannot say what it asks: RuntimeError: our server is not reachable"),
        (lambda source: {"name": "mine"}, "gives a dict, and not a TaskSpec"),
    ],
)
def test_a_spec_that_fails_names_its_task(
    spec: Callable[..., Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SimpleNamespace(name="mine", spec=spec)
    monkeypatch.setattr(identity, "get_task", lambda name: task)
    grid: Any = SimpleNamespace(
        task_names=("mine",), tasks=("mine",), set={}, task_options=lambda name, like: {}
    )
    with pytest.raises(ConfigError) as caught:
        identity.ask(grid, MiniSource())
    assert "'mine'" in str(caught.value)
    assert words in str(caught.value)


class Judged(Declaration):
    """A task that is given what judges."""

    kind: Literal["text"] = "text"
    judge: Callable[..., Any]


def test_a_function_that_a_task_holds_counts_by_its_name() -> None:
    score = DeclaredScore(metric="loss", better="lower")
    facts: dict[str, Any] = {"cost": Cost(items=1), "scores": (score,)}
    first, second, other = (
        task_hash(Judged(name="mine", about="ours", table="wikitext", **facts, judge=judge))  # type: ignore[arg-type]
        for judge in (unreachable, unreachable, print)
    )
    assert first == second != other
