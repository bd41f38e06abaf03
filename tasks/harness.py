"""Tasks of lm-eval, run by lm-eval's own code on our data: stock prompts, filters and metrics.

A task is a YAML file, in this folder or anywhere. From the logged answers come the stock metrics
with standard errors, and a continuous companion that still moves where accuracy is at the floor:

    gold_logprob   mean over items of ln( p(gold) / sum over choices p(choice) ), higher is better
    gold_nll       mean over items of -ln p(gold | prompt) per token, lower is better
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError

from qbench.errors import ConfigError, DataError, StoreError, require_at_least
from qbench.files.ordinary import ordinary_text
from qbench.records import TaskSpec
from qbench.tasks.declaration import Declaration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qbench.tasks.contract import Context, Outcome
    from qbench.tasks.data import Source

SEED = 1234  # of the fixed choice of items


class HarnessTask(Declaration):
    """A task of lm-eval, from one YAML file: what every task declares, and the following.

    harness: the name of the task in lm-eval, or a pattern for one task per subject. harness_path:
    its folder inside lm-eval's tasks. splits: the splits of the table that lm-eval gets; the
    questions are those of the last. fewshot_split: where examples come from, None where there are
    none. subject_column: the column by which rows belong to a subject, where lm-eval has a task for
    each. companion: the continuous score.
    """

    kind: Literal["multiple_choice", "generation", "loglikelihood"]
    harness: str
    harness_path: str
    splits: tuple[str, ...] = Field(min_length=1)
    fewshot_split: str | None = None
    num_fewshot: int = Field(default=0, ge=0)
    subject_column: str | None = None
    companion: Literal["gold_logprob", "gold_nll"] | None = None

    @property
    def has_subjects(self) -> bool:
        """Whether it also scores parts of itself."""
        return self.subject_column is not None

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
        spread: int | None = None,
    ) -> TaskSpec:
        """See `Task.spec`. The default is 0-shot where the data have no examples for prompts.

        ConfigError for a number that is too small, and for shots where there are no examples.
        """
        require_at_least(f"{self.name}.limit", limit, instead=", or 'all'")
        require_at_least(f"{self.name}.num_fewshot", num_fewshot, least=0)
        require_at_least(f"{self.name}.generate", generate, least=0, instead=", or 'all'")
        has_examples = self.fewshot_split in source.splits(self.table_name)
        if num_fewshot and not has_examples:
            raise ConfigError(
                f"num_fewshot={num_fewshot}: {source.label} has no "
                f"{self.fewshot_split or 'further'} split of {self.table_name} to take "
                "examples from; use 0, or data that has it (--data DIR or --data hub)"
            )
        if num_fewshot is None:
            num_fewshot = self.num_fewshot if has_examples else 0
        return TaskSpec(
            name=source.task_name(self.name),
            data=source.table_name(self.table_name),
            sha256=source.sha256(self.table_name),
            limit=limit,
            num_fewshot=num_fewshot,
            generate=generate if self.kind == "generation" else None,
        )

    def with_prompts(
        self, spec: TaskSpec, max_gen_toks: int | None, chat_template: bool, bos: Any
    ) -> TaskSpec:
        """The protocol with the form of its prompts, and the length that answers may have.

        Parameters: see `TaskSpec`.
        """
        require_at_least(f"{self.name}.max_gen_toks", max_gen_toks)
        changes: dict[str, Any] = {"chat_template": chat_template, "bos": bos}
        if self.kind == "generation":
            changes["max_gen_toks"] = max_gen_toks
        return spec.model_copy(update=changes)

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Run lm-eval on the items that `spec` names.

        ConfigError, before the model runs, where the file declares a score that lm-eval's task does
        not give, or declares the wrong direction for one.
        """
        from qbench.tasks.judging import check_scores, judge
        from qbench.tasks.lm import language_model, quiet, warn_of_cut_prompts

        with quiet():
            parts = stock_parts(self, context.source, spec)
            check_scores(self, parts)
            lm = language_model(context, spec.name, spec.chat_template, spec.bos)
            outcome = judge(self, lm, parts, spec, context.source)
        warn_of_cut_prompts(lm, spec.name)
        return outcome._replace(facts=lm.facts | outcome.facts)


@dataclass(frozen=True)
class Part:
    """One stock task on our data.

    task: lm-eval's. rows: each item's row in its split (of its subject), by lm-eval's doc_id.
    subject, category: where the task asks one subject of many.
    """

    name: str
    task: Any
    rows: tuple[int, ...]
    subject: str | None = None
    category: str | None = None


@cache  # keyed by the text, so that an edited file is read again
def _settings(text: str) -> Any:
    return yaml.safe_load(text)


def read_task(path: Path) -> HarnessTask:
    """The task of a YAML file; ConfigError, naming the file and the key, where it is none."""
    try:
        return HarnessTask.model_validate(_settings(ordinary_text(path)))
    except StoreError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors():
            place = ".".join(map(str, mistake["loc"])) or "file"
            mistakes.append(f"{place}: {mistake['msg']}")
        fields = ", ".join(HarnessTask.model_fields)
        raise ConfigError(
            f"{path.name} does not describe a task: {'; '.join(mistakes)}. Its keys are {fields}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} is not readable YAML: {error}") from error


def stock_parts(declared: HarnessTask, source: Source, spec: TaskSpec) -> list[Part]:
    """lm-eval's own task objects with our rows: one, or one for each subject.

    ConfigError where lm-eval has no such task; DataError where rows are missing, also those of
    examples.
    """
    configs = _stock_configs(declared)
    *others, asked = declared.splits
    present = source.splits(declared.table_name)
    data = {}
    for split in (*others, asked):
        if split in present or split == asked:
            data[split] = source.rows(declared.table_name, split)
    if declared.subject_column is None:
        (config, *_) = configs.values()
        return [_part(declared, spec, spec.name, config, data)]

    places = {split: _places(rows[declared.subject_column][:]) for split, rows in data.items()}
    parts = []
    for name, config in configs.items():
        subject = config["dataset_name"]
        own = {split: rows.select(places[split].get(subject, ())) for split, rows in data.items()}
        if len(own[asked]):
            parts.append(_part(declared, spec, source.task_name(name), config, own, subject))
    if not parts:
        raise DataError(
            f"{spec.data} has no row of any subject of {declared.name}; "
            f"see its {declared.subject_column}"
        )
    return parts


def _require_examples(
    declared: HarnessTask, spec: TaskSpec, data: Mapping[str, Any], subject: str | None
) -> None:
    """DataError where there are fewer examples for the prompts, of a subject, than shots."""
    split, shots = declared.fewshot_split, spec.num_fewshot or 0
    count = len(data.get(split or "", ()))
    if count < shots:
        of_subject = "" if subject is None else f" of the subject {subject!r}"
        raise DataError(
            f"{spec.data} has {count} rows{of_subject} in its {split} split, and {shots} are asked "
            f"as examples; add some, or give --set {declared.name}.num_fewshot={count}"
        )


def _stock_configs(declared: HarnessTask) -> dict[str, dict[str, Any]]:
    """The configurations that the task's pattern names."""
    from qbench.tasks.lm import stock_configs

    configs = stock_configs(declared.harness_path)
    chosen = {name: c for name, c in configs.items() if fnmatchcase(name, declared.harness)}
    if not chosen:
        place = f"{declared.harness!r} in lm-eval's folder {declared.harness_path!r}"
        raise ConfigError(
            f"task {declared.name}: there is no {place}; it has {', '.join(configs) or 'none'}"
        )
    return chosen


def _part(
    declared: HarnessTask,
    spec: TaskSpec,
    name: str,
    stock: dict[str, Any],
    data: dict[str, Any],
    subject: str | None = None,
) -> Part:
    """data: split -> rows. Only the chosen rows of the asked split are handed to lm-eval."""
    from datasets import DatasetDict

    from qbench.tasks.lm import stock_task

    _require_examples(declared, spec, data, subject)
    asked = declared.splits[-1]
    config = stock | {"task": name, "num_fewshot": spec.num_fewshot}
    if spec.max_gen_toks is not None:
        writing = config.get("generation_kwargs") or {}
        config["generation_kwargs"] = writing | {"max_gen_toks": spec.max_gen_toks}
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) not in data:
            config[key] = None
    # lm-eval asks the test split, and the validation split where there is no test split.
    stock_asked = config["test_split"] or config["validation_split"]
    if stock_asked != asked:
        raise ConfigError(
            f"task {declared.name}: the last of its splits is {asked!r}, and lm-eval's "
            f"{declared.harness} asks {stock_asked!r}; put that one last"
        )
    shuffled = declared.kind != "generation" and subject is None
    rows = chosen_rows(len(data[asked]), spec.limit, shuffled=shuffled)
    task = stock_task(config, DatasetDict(data | {asked: data[asked].select(rows)}))
    tag = stock.get("tag")
    category = tag.removesuffix("_tasks") if isinstance(tag, str) and subject else None
    return Part(name, task, rows, subject, category)


def chosen_rows(count: int, limit: int | None, *, shuffled: bool) -> tuple[int, ...]:
    """Which rows are asked, in file order: all, the first `limit`, or those of a fixed shuffle."""
    rows = list(range(count))
    if shuffled:
        Random(SEED).shuffle(rows)
    return tuple(sorted(rows[:limit]))


def _places(subjects: list[str]) -> dict[str, list[int]]:
    """Subject -> its rows, in the table's order."""
    places: dict[str, list[int]] = {}
    for index, subject in enumerate(subjects):
        places.setdefault(subject, []).append(index)
    return places
