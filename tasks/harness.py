"""Tasks of lm-eval, run by lm-eval's own code on our data: the prompts, filters and metrics are the stock ones.

A task is a YAML file beside this one. From the logged answers come the stock metrics with standard
errors, and a continuous companion that still moves where accuracy is at the floor:

    gold_logprob   mean over items of ln( p(gold) / sum over choices p(choice) ), higher is better
    gold_nll       mean over items of -ln p(gold solution | few-shot prompt) per token, lower is better
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qbench.errors import ConfigError, DataError, require_at_least
from qbench.records import Score, TaskSpec
from qbench.tasks.contract import Context, Outcome, mean_score
from qbench.tasks.data import Source

SCORED = 0.1  # share of the time that the likelihoods of gsm8k take, the rest is generation
SEED = 1234  # of the fixed choice of items


class HarnessTask(BaseModel):
    """One YAML file.

    harness: the stock task's name, or a pattern of subject tasks; harness_path: its folder inside
    lm-eval's tasks. splits: what is handed over of `table`; the last is the one that is asked.
    subject_column: where each stock task asks one subject of the table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    paper: str
    kind: Literal["multiple_choice", "generation"]
    harness: str
    harness_path: str
    table: str
    splits: tuple[str, ...] = Field(min_length=1)
    fewshot_split: str
    num_fewshot: int = Field(ge=0)
    subject_column: str | None = None
    companion: Literal["gold_logprob", "gold_nll"] | None = None

    def describe(self) -> str:
        """What it asks, at how many shots, from which paper."""
        return f"{self.about} ({self.num_fewshot}-shot; {self.paper})"

    def spec(
        self,
        source: Source,
        limit: int | None = None,
        num_fewshot: int | None = None,
        length: int | None = None,
        generate: int | None = None,
    ) -> TaskSpec:
        """The protocol on this data; where there are no examples for prompts, 0-shot."""
        require_at_least("limit", limit)
        require_at_least("num_fewshot", num_fewshot, least=0)
        require_at_least("generate", generate, least=0)
        examples = self.fewshot_split in source.splits(self.table)
        if num_fewshot and not examples:
            raise ConfigError(
                f"num_fewshot={num_fewshot}: {source.label} has no {self.fewshot_split} split of {self.table} to take "
                "examples from; use 0, or data that has it (--data DIR or --data hub)"
            )
        if num_fewshot is None:
            num_fewshot = self.num_fewshot if examples else 0
        return TaskSpec(
            name=source.task_name(self.name),
            data=source.table_name(self.table),
            sha256=source.sha256(self.table),
            limit=limit,
            num_fewshot=num_fewshot,
            generate=generate if self.kind == "generation" else None,
        )

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Run lm-eval on the items that `spec` names."""
        from qbench.tasks.lm import language_model, quiet, warn_of_cut_prompts

        with quiet():
            parts = stock_parts(self, context.source, spec)
            lm = language_model(context, spec.name)
            judge = _generation if self.kind == "generation" else _multiple_choice
            outcome = judge(self, lm, parts, spec, context.source)
        warn_of_cut_prompts(lm, spec.name)
        return outcome


@dataclass(frozen=True)
class Part:
    """One stock task on our data. rows: each item's row in its split (of its subject), by lm-eval's doc_id."""

    name: str
    task: Any
    rows: tuple[int, ...]
    subject: str | None = None
    category: str | None = None


def read_task(path: Path) -> HarnessTask:
    """One YAML file; ConfigError naming the file and the key."""
    try:
        return HarnessTask.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not readable YAML: {error}") from error
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()
        )
        fields = ", ".join(HarnessTask.model_fields)
        raise ConfigError(
            f"{path.name} does not describe a task: {said}. Its keys are {fields}"
        ) from error


def stock_parts(declared: HarnessTask, source: Source, spec: TaskSpec) -> list[Part]:
    """lm-eval's own task objects, given our rows."""
    from qbench.tasks.lm import stock_configs

    configs = stock_configs(declared.harness_path)
    chosen = [name for name in configs if fnmatchcase(name, declared.harness)]
    if not chosen:
        place = f"{declared.harness!r} in lm-eval's folder {declared.harness_path!r}"
        raise ConfigError(
            f"task {declared.name}: there is no {place}; it has {', '.join(configs) or 'none'}"
        )
    *others, asked = declared.splits
    there = [split for split in others if split in source.splits(declared.table)] + [asked]
    data = {split: source.rows(declared.table, split) for split in there}
    if declared.subject_column is None:
        return [_part(declared, spec, spec.name, configs[chosen[0]], data)]
    places = {split: _places(rows[declared.subject_column][:]) for split, rows in data.items()}
    parts = []
    for name in chosen:
        subject = configs[name]["dataset_name"]
        own = {split: rows.select(places[split].get(subject, ())) for split, rows in data.items()}
        if len(own[configs[name]["test_split"]]):
            parts.append(_part(declared, spec, source.task_name(name), configs[name], own, subject))
    if not parts:
        raise DataError(
            f"{spec.data} has no row of any subject of {declared.name}; see its {declared.subject_column}"
        )
    return parts


def _part(
    declared: HarnessTask,
    spec: TaskSpec,
    name: str,
    stock: dict[str, Any],
    data: dict[str, Any],
    subject: str | None = None,
) -> Part:
    from datasets import DatasetDict

    from qbench.tasks.lm import stock_task

    config = stock | {"task": name, "num_fewshot": spec.num_fewshot}
    for key in ("training_split", "validation_split", "fewshot_split"):
        if config.get(key) not in data:
            config[key] = None
    test = config["test_split"]
    rows = chosen_rows(
        len(data[test]), spec.limit, shuffled=declared.kind == "multiple_choice" and subject is None
    )
    task = stock_task(config, DatasetDict(data | {test: data[test].select(rows)}))
    tag = stock.get("tag")
    category = tag.removesuffix("_tasks") if isinstance(tag, str) and subject else None
    return Part(name, task, rows, subject, category)


def chosen_rows(count: int, limit: int | None, *, shuffled: bool) -> tuple[int, ...]:
    """Which rows are asked, in file order: all, the first `limit`, or the first `limit` of a fixed shuffle."""
    rows = list(range(count))
    if shuffled:
        Random(SEED).shuffle(rows)
    return tuple(sorted(rows[:limit]))


def _places(subjects: list[str]) -> dict[str, list[int]]:
    """Subject -> its rows, in the table's order."""
    found: dict[str, list[int]] = {}
    for index, subject in enumerate(subjects):
        found.setdefault(subject, []).append(index)
    return found


def _multiple_choice(
    declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec, source: Source
) -> Outcome:
    rows = [row | _choice_values(row, declared.companion) for row in _answers(lm, parts)]
    higher = parts[0].task.higher_is_better() | {"gold_logprob": True}
    scores = _scores(spec.name, rows, higher)
    for category in dict.fromkeys(part.category for part in parts if part.category):
        members = {part.subject for part in parts if part.category == category}
        scores += _scores(
            source.task_name(category), [row for row in rows if row["subject"] in members], higher
        )
    return Outcome(tuple(scores), rows)


def _choice_values(row: dict[str, Any], companion: str | None) -> dict[str, Any]:
    """The choices' log-likelihoods, and the share of the gold one among them."""
    logs = [float(answer[0]) for answer in row.pop("filtered")]
    row.pop("responses")
    values: dict[str, Any] = {"loglikelihoods": logs}
    if companion == "gold_logprob":
        top = max(logs)
        values["gold_logprob"] = (
            logs[row["target"]] - top - math.log(math.fsum(math.exp(x - top) for x in logs))
        )
    return values


def _generation(
    declared: HarnessTask, lm: Any, parts: list[Part], spec: TaskSpec, source: Source
) -> Outcome:
    """The likelihood of every item's gold solution, and the first `generate` solutions written and filtered."""
    from qbench.tasks.lm import loglikelihoods, prompts

    (part,) = parts
    scores: list[Score] = []
    rows: list[dict[str, Any]] = []
    if declared.companion == "gold_nll":
        asked = prompts(part.task)
        between = part.task.config.target_delimiter
        pairs = [(prompt, f"{between}{part.task.doc_to_target(doc)}") for doc, prompt in asked]
        lm.span = (0.0, SCORED if spec.generate != 0 else 1.0)
        found = loglikelihoods(lm, part.name, pairs)
        for index, ((log, tokens), (prompt, gold)) in enumerate(zip(found, pairs, strict=True)):
            row = {
                "doc_id": part.rows[index],
                "filter": "none",
                "prompt_hash": _hash(prompt),
                "target_hash": _hash(gold),
            }
            rows.append(row | {"loglikelihood": log, "tokens": tokens, "gold_nll": -log / tokens})
        scores += _scores(spec.name, rows, {"gold_nll": False})
    if spec.generate != 0:
        lm.span = (SCORED if rows else 0.0, 1.0)
        written = _answers(lm, parts, spec.generate)
        scores += _scores(spec.name, written, part.task.higher_is_better())
        rows += written
    return Outcome(tuple(scores), rows)


def _answers(lm: Any, parts: list[Part], limit: int | None = None) -> list[dict[str, Any]]:
    """One row per item and filter: who, what was answered, and lm-eval's metrics."""
    from qbench.tasks.lm import answers

    kept = ("filter", "doc_hash", "prompt_hash", "target_hash", "target")
    samples = answers(lm, [part.task for part in parts], limit)
    rows = []
    for part in parts:
        for sample in samples[part.name]:
            row: dict[str, Any] = {"doc_id": part.rows[sample["doc_id"]]} | {
                key: sample[key] for key in kept
            }
            row |= {"subject": part.subject} if part.subject else {}
            row |= {"responses": sample["resps"], "filtered": sample["filtered_resps"]}
            rows.append(row | {metric: float(sample[metric]) for metric in sample["metrics"]})
    return rows


def _scores(task: str, rows: list[dict[str, Any]], higher: dict[str, bool]) -> list[Score]:
    """Every metric under every filter, in the order in which they first appear."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for metric in higher:
            if metric in row:
                found.setdefault((metric, row["filter"]), []).append(row[metric])
    return [
        mean_score(task, metric, values, higher=higher[metric], filter=name)
        for (metric, name), values in found.items()
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
