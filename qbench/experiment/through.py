"""A saved model, judged through the engine that serves it, and compared with transformers.

The tasks, their items and their tokens are those of `qbench.experiment.single`; only the program
that computes differs. Divergence is refused, since engines do not give whole distributions.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from qbench.calibration.walk import Progress
from qbench.comparison.parity import Parity, parity
from qbench.environment import pick_device, pick_dtype
from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.experiment.grid_checks import check_owners
from qbench.experiment.identity import ask
from qbench.experiment.plugins import load_plugins
from qbench.experiment.single import data_for, judge_model
from qbench.models.identity import Announce
from qbench.models.loading import load_config
from qbench.models.source import find_model
from qbench.models.tokenizers import load_tokenizer, require_template
from qbench.quantization import made_of
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Context, Outcome, Task
from qbench.tasks.data import Source
from qbench.tasks.engines import Engine, check_engine
from qbench.tasks.outcome import checked


class Said(NamedTuple):
    """One line of an evaluation: a score through the engine, or the parity of a task."""

    task: str
    score: Score | None = None
    parity: Parity | None = None


def evaluate_through(
    folder: Path,
    grid: Grid,
    through: str,
    compare: bool,
    progress: Progress,
    announce: Announce,
) -> Iterator[Said]:
    """Scores of a folder's model through an engine, task by task, and then the parity of each.

    through: `vllm`, or the address of an OpenAI-compatible server. compare: whether transformers is
    asked the same. announce: is told which data is taken. ConfigError where the engine cannot be
    asked, or a task wants what it does not give.
    """
    check_engine(through)
    outcomes: dict[str, Outcome] = {}
    engine = _engine(folder, grid, through)
    load_plugins(grid.plugin)
    check_owners(grid, [], calibrates=False)
    chosen = data_for(grid, made_of(find_model(str(folder))) or str(folder), announce)
    grid = grid.model_copy(update={"data": chosen.data})
    asked = ask(grid, chosen.source, announce)
    for name, outcome in _judge_engine(engine, asked, chosen.source, progress):
        if engine.is_another and not outcomes:
            announce(
                f"{through} answers with a model that it calls {engine.served!r}; whether it is "
                f"that of {folder} is not known without --parity"
            )
        outcomes[name] = outcome
        for score in outcome.scores:
            yield Said(name, score=score)
    if not compare:
        return
    engine.lm = None  # gives its memory back before the model is loaded once more
    gc.collect()
    for spec, outcome in judge_model(folder, grid, progress):
        yield Said(spec.name, parity=parity(outcome.samples, outcomes[spec.name].samples))


def _engine(folder: Path, grid: Grid, through: str) -> Engine:
    source = find_model(str(folder), grid.trust_remote_code)
    if source.gguf or not source.local:
        raise ConfigError(f"--through takes a model's folder, and {folder} is none")
    if grid.prompts["chat_template"]:
        require_template(source)
    dtype = pick_dtype(grid.dtype, pick_device(grid.device))
    return Engine(folder, through, load_config(source), load_tokenizer(source), dtype)


def _judge_engine(
    engine: Engine, asked: Sequence[tuple[Task, TaskSpec]], source: Source, progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    for task, spec in asked:
        if task.needs_unquantized:
            raise ConfigError(
                f"{spec.name} compares whole distributions, and an engine gives the likelihoods of "
                "tokens alone; leave it out of --tasks"
            )
    context = Context(engine, engine.tokenizer, source, progress=progress)
    for task, spec in asked:
        yield spec.name, checked(task, spec, task.evaluate(context, spec))
