"""What the hub reads of a saved model: the metadata of its card, and its `.eval_results`.

The metadata are the YAML at the head of README.md: the base model, the licence, and the scores as
`model-index`. A file of `.eval_results` says the headline score of one published data set:
https://huggingface.co/docs/hub/eval-results. What was asked of stand-ins is in neither the place of
the real thing: it keeps its own name in `model-index`, and has no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from qbench.records import Record, Score, TaskSpec

RESULTS = ".eval_results"  # a folder of the model's
BASE, LICENCE = "base_model", "licence"  # facts of quantization_config
_TAGS = ["qbench", "quantized"]


class Benchmark(NamedTuple):
    """The published data set of a task.

    repository, config, split: where its items are on the hub. metric, filter: of its headline.
    items: how many it has.
    """

    repository: str
    config: str | None
    split: str
    metric: str
    filter: str
    items: int


def card_metadata(
    entry: Mapping[str, Any],
    title: str,
    record: Record | None,
    benchmarks: Mapping[str, Benchmark],
) -> str:
    """The YAML between the lines of `---`.

    entry: the quantization_config. title: of the model, in `model-index`. benchmarks: by the name
    of a task in the record; stand-ins have none.
    """
    from huggingface_hub import ModelCardData

    base = entry.get(BASE)
    results = [] if record is None else list(_results(record, benchmarks))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        license=entry.get(LICENCE),
        base_model=base,
        model_name=title if results else None,
        eval_results=results or None,
    )
    if base is not None:
        data["base_model_relation"] = "quantized"
    return data.to_yaml()


def eval_results(record: Record, benchmarks: Mapping[str, Benchmark]) -> dict[str, str]:
    """The files of `.eval_results`: name -> YAML, one for each published data set."""
    files = {}
    for spec, score in _scores(record):
        benchmark = benchmarks.get(spec.name)
        if benchmark is None or (score.metric, score.filter) != benchmark[3:5]:
            continue
        dataset = {"id": benchmark.repository, "task_id": benchmark.config or "default"}
        result = {"dataset": dataset, "value": score.value, "notes": _notes(spec, score, benchmark)}
        files[f"{spec.name}.yaml"] = yaml.safe_dump([result], sort_keys=False)
    return files


def _results(record: Record, benchmarks: Mapping[str, Benchmark]) -> Iterator[Any]:
    """Every score of the record that is of a whole task, as huggingface_hub has it.

    The task and how it was asked stand with the metric: results of one data set are put together.
    """
    from huggingface_hub import EvalResult

    for spec, score in _scores(record):
        benchmark = benchmarks.get(spec.name)
        own = "" if score.filter == "none" else f" ({score.filter})"
        yield EvalResult(
            task_type="text-generation",
            dataset_type=benchmark.repository if benchmark else spec.data,
            dataset_name=spec.data,
            dataset_config=benchmark.config if benchmark else None,
            dataset_split=benchmark.split if benchmark else None,
            metric_type=score.metric,
            metric_value=score.value,
            metric_name=f"{spec.name} {score.metric}{own}",
            metric_args=_asked(spec) | _spread(score) | {"items": score.n},
        )


def _spread(score: Score) -> dict[str, float | None]:
    """The standard error, and of a share of right answers the 95 % interval."""
    if score.low is None or score.high is None:
        return {"stderr": score.stderr}
    return {"stderr": score.stderr, "low": score.low, "high": score.high}


def _scores(record: Record) -> Iterator[tuple[TaskSpec, Score]]:
    """The scores of whole tasks, without those of their subjects, each with its protocol."""
    specs = {spec.name: spec for spec in record.cell.tasks}
    for score in record.scores:
        if score.task in specs:
            yield specs[score.task], score


def _asked(spec: TaskSpec) -> dict[str, Any]:
    """How a task was asked, without its names and hashes."""
    facts = spec.facts()
    return {key: facts[key] for key in facts if key not in ("name", "data", "sha256")}


def _notes(spec: TaskSpec, score: Score, benchmark: Benchmark) -> str:
    """`acc_norm of 200 of 2376 items, 0-shot, by qbench`; all, where no fewer were asked."""
    whole = score.n >= benchmark.items
    number = f"all {score.n}" if whole else f"{score.n} of {benchmark.items}"
    shots = "" if spec.num_fewshot is None else f", {spec.num_fewshot}-shot"
    return f"{score.metric} of {number} items{shots}, by qbench"
