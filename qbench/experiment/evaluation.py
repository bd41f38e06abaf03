"""The second half of a cell: every task judges its model, and the items are stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from qbench.calibration.walk import Progress
from qbench.comparison.cell_lint import Evaluated, lint_cell
from qbench.errors import QbenchError, StoreError, reason_of
from qbench.experiment.at_work import AtWork
from qbench.experiment.back_off import halved
from qbench.files.atomic import remove
from qbench.models.paging import on_device
from qbench.models.tokenizers import check_fit
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Context, Task, Unquantized
from qbench.tasks.outcome import checked


def evaluate(at_work: AtWork, model: Any, tokenizer: Any) -> tuple[Score, ...]:
    """Scores of every task; the samples are written on the way.

    First all tasks prepare what they need of the unquantized model. So tasks that share a pass over
    the model under test can do so in any order.
    """
    cell = at_work.job.cell
    check_fit(model, tokenizer, f"model {cell.model!r}")
    on_device(model, at_work.job.device)
    torch.manual_seed(cell.seed)
    context = Context(model, tokenizer, at_work.source)
    context.unquantized = Unquantized(
        load=partial(_unquantized, at_work, model, tokenizer),
        file=partial(at_work.store.reference, cell),
    )
    preparing = [spec for spec in cell.tasks if at_work.tasks[spec.name].needs_unquantized]
    spans = _spans(at_work, [*preparing, *cell.tasks])
    for spec in preparing:
        own = _for_task(at_work, context, at_work.tasks[spec.name], next(spans))
        with at_work.phase(f"prepare {spec.name}"):
            _prepare(at_work, own, spec)
    scores: list[Score] = []
    rows: dict[str, Sequence[Mapping[str, Any]]] = {}
    for spec in cell.tasks:
        task = at_work.tasks[spec.name]
        started = time.perf_counter()
        with at_work.phase(spec.name):
            outcome = task.evaluate(_for_task(at_work, context, task, next(spans)), spec)
            outcome = checked(task, spec, outcome)
        at_work.require_same_items(spec)
        seconds = time.perf_counter() - started
        told = at_work.facts.setdefault("evaluation", {})
        told[spec.name] = {"seconds": seconds, **outcome.facts}
        with at_work.saving():
            path, digest = at_work.store.write_samples(cell, spec.name, outcome.samples)
        told[spec.name]["samples_sha256"] = digest
        if cell.calibration is not None and task.name in at_work.job.overlaps:
            told[spec.name]["overlap"] = at_work.job.overlaps[task.name]
        rows[spec.name] = outcome.samples
        scores += [score.model_copy(update={"samples": path}) for score in outcome.scores]
        at_work.tell({"scores": [score.model_dump(mode="json") for score in outcome.scores]})
    _lint(at_work, rows, scores)
    return tuple(scores)


def _lint(
    at_work: AtWork, rows: Mapping[str, Sequence[Mapping[str, Any]]], scores: Sequence[Score]
) -> None:
    """Add to the facts what may be wrong with the evaluation."""
    told = at_work.facts.get("evaluation", {})
    covered = at_work.facts.get("coverage", {})
    evaluated = Evaluated(at_work.job.cell, told, rows, covered, scores)
    cautions = [*at_work.cautions, *lint_cell(evaluated)]
    at_work.facts["warnings"] = [caution.model_dump(mode="json") for caution in cautions]


def _prepare(at_work: AtWork, context: Context, spec: TaskSpec) -> None:
    """Let a task prepare what it needs of the unquantized model; again where its file is damaged.

    A file that was made from another model or other data than the plan's is removed, or other cells
    would use it.
    """
    task = at_work.tasks[spec.name]
    path = at_work.store.reference(at_work.job.cell, spec)
    with at_work.claimed(f"reference-{path.stem}"):
        present = path.exists()
        try:
            task.prepare(context, spec)
        except StoreError as error:
            if not present:
                raise
            at_work.tell({"note": f"{reason_of(error)}; it is made again"})
            remove(path)
            present = False
            task.prepare(context, spec)
        if present:
            return
        try:
            at_work.require_same_model()
            at_work.require_same_items(spec)
        except QbenchError:
            if path.exists():
                remove(path)
            raise


def _for_task(at_work: AtWork, context: Context, task: Task, progress: Progress) -> Context:
    """The cell's context with a task's own batch size and progress; the cache is shared."""
    batch_size = halved(task.batch_size or at_work.job.batch_size, at_work.job.halvings)
    return replace(context, batch_size=batch_size, progress=progress)


def _unquantized(at_work: AtWork, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model before quantization: the one under test where it is not quantized."""
    if at_work.job.cell.method == "none":
        return model, tokenizer
    original = at_work.read(at_work.job.model, at_work.job.cell.dtype, at_work.job.device)
    return on_device(original.model, at_work.job.device), original.tokenizer


def _spans(at_work: AtWork, specs: Sequence[TaskSpec]) -> Iterator[Progress]:
    """What follows quantizing of the cell's progress, divided by the specs' estimated times."""
    estimated = at_work.job.estimate
    total = sum(estimated.tasks[spec.name] for spec in specs)
    low = estimated.quantize_share
    for spec in specs:
        share = estimated.tasks[spec.name]
        high = low + (1 - estimated.quantize_share) * share / total
        yield at_work.span(low, high, spec.name)
        low = high
