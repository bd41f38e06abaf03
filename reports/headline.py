"""Which scores come first, and what they are called.

What a task's scores are, in which order, unit and direction, its own file declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from qbench.comparison.judging import protocol
from qbench.comparison.pairs import ScoreKey, score_of
from qbench.errors import DataError
from qbench.records import Record, Score, TaskSpec
from qbench.reports.cell_names import ordered
from qbench.tasks.declaration import Nature
from qbench.tasks.mini_source import record_names, split_name
from qbench.tasks.registry import nature_of, ordered_tasks, unit_of

# How a setting of a protocol is written; others as their name and value.
SETTINGS: dict[str, Callable[[Any], str]] = {
    "sha256": lambda value: f"data {value[:8]}",
    "limit": lambda value: "all items" if value is None else f"limit {value}",
    "num_fewshot": lambda value: f"{value}-shot",
    "length": lambda value: f"{value} tokens",
    "generate": lambda value: "all written" if value is None else f"{value} written",
    "spread": lambda value: "consecutive" if value is None else f"spread {value}",
    "max_gen_toks": lambda value: f"up to {value or 'lm-eval default'} tokens",
    "chat_template": lambda value: "chat template" if value else "no template",
    "bos": lambda value: f"BOS {value or 'as trained'}",
}
ALWAYS = ("limit", "chat_template", "bos")  # settings that say something where they are None, too
WITH_PROMPTS = ("chat_template", "bos")
MINI_NOTICE = "mini tasks are stand-ins shipped with qbench: not comparable with published scores"


@dataclass(frozen=True)
class Headline:
    """One score that people look at first: a column of the wide table, and a picture.

    screen: its short name on the screen, None where it is only in the files. protocol: how its task
    was asked (`TaskSpec.protocol`), None for any; cells that were asked otherwise have not this
    score. settings: in what this protocol differs from others of the same score, in words.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    screen: str | None = field(default=None, compare=False)
    protocol: str | None = None
    settings: str = field(default="", compare=False)

    @property
    def key(self) -> ScoreKey:
        """By which its score is found in a record."""
        return self.task, self.metric, self.filter

    @property
    def unit(self) -> str:
        """As its task declares it: `%` for a share, empty for a plain number."""
        return unit_of(self.task, self.metric)

    @property
    def nature(self) -> Nature:
        """As its task declares it: `plain`, `perplexity` or `relative`."""
        return nature_of(self.task, self.metric)

    @property
    def is_divergence(self) -> bool:
        """Whether it says in nats, and not as a share, how far the unquantized model is."""
        return self.is_relative and self.unit != "%"

    @property
    def is_relative(self) -> bool:
        """Whether it is a difference from the unquantized model already."""
        return self.nature == "relative"

    @property
    def measure(self) -> str:
        """The metric with its unit."""
        return with_unit(self.task, self.metric)

    @property
    def title(self) -> str:
        """`arc_easy acc %`, `gsm8k exact_match % (strict-match)`, `arc_easy acc % [0-shot]`."""
        words = [self.task, self.measure]
        if self.filter != "none":
            words.append(f"({self.filter})")
        if self.settings:
            words.append(f"[{self.settings}]")
        return " ".join(words)

    @property
    def heading(self) -> str:
        """The title and the arrow."""
        return f"{self.title} {self.arrow}"

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def short(self) -> str | None:
        """Its name on the screen, on three short lines; None where it is only in the files."""
        if self.screen is None:
            return None
        prefix, task = split_name(self.task)
        unit = " nats" if self.unit.startswith("nats") else ""  # `%` is in the name
        lines = [prefix, task, f"{self.screen}{unit} {self.arrow}"]
        if self.settings:
            lines += self.settings.split(", ")
        return "\n".join(lines)

    def of(self, record: Record) -> Score | None:
        """This score of a finished cell that was asked so."""
        if self.protocol is not None and asked(record, self.task) != self.protocol:
            return None
        return score_of(record, self.key)


def with_unit(task: str, metric: str) -> str:
    """`acc %`, `kl_mean in nats per token`, `perplexity`."""
    unit = unit_of(task, metric)
    if unit in ("", "%"):
        return f"{metric} {unit}".rstrip()
    return f"{metric} in {unit}"


def require(records: Sequence[Record]) -> None:
    """DataError where there is nothing to report."""
    if not records:
        raise DataError(
            "there are no records to report; "
            "give a run's folder that holds at least one finished cell"
        )


def asked(record: Record, task: str) -> str:
    """By which protocol a cell was asked a task; empty where it does not say."""
    spec = protocol(record, task)
    return "" if spec is None else _hash(spec)


@lru_cache(maxsize=1024)
def _hash(spec: TaskSpec) -> str:
    return spec.protocol


def in_words(spec: TaskSpec) -> str:
    """A protocol with every setting that has a meaning for its task, and its hash."""
    words = []
    for name, written in SETTINGS.items():
        value = getattr(spec, name)
        meant = name in ALWAYS or (value is not None and value is not False)
        if meant and not (name in WITH_PROMPTS and spec.num_fewshot is None):
            words.append(written(value))
    return f"{', '.join(words)}; {spec.data}, protocol {_hash(spec)}"


def headlines(records: Sequence[Record]) -> list[Headline]:
    """The headline scores that these records have, in the order that their tasks declare.

    Of a task that is not registered, its first score. A score that was asked in several ways is
    there once for each.
    """
    in_order = ordered(records)
    scores = []
    for headline in _headlines(in_order):
        scores += _by_protocol(headline, in_order)
    return scores


def _by_protocol(headline: Headline, records: Sequence[Record]) -> list[Headline]:
    """A score for each of the ways in which its task was asked. records: in order."""
    specs: dict[str, TaskSpec | None] = {}
    for record in records:
        if headline.of(record):
            specs.setdefault(asked(record, headline.task), protocol(record, headline.task))
    several = [spec for spec in specs.values() if spec is not None]
    ways = []
    for name, spec in specs.items():
        words = "" if spec is None or len(specs) < 2 else settings(spec, several)
        ways.append(replace(headline, protocol=name, settings=words))
    return ways


def settings(spec: TaskSpec, others: Sequence[TaskSpec]) -> str:
    """What of a protocol differs among others of the same task, such as `5-shot, all items`."""
    words = []
    for name in type(spec).model_fields:
        if len({getattr(other, name) for other in others}) > 1:
            value = getattr(spec, name)
            words.append(SETTINGS[name](value) if name in SETTINGS else f"{name} {value}")
    return ", ".join(words)


def _headlines(records: Sequence[Record]) -> list[Headline]:
    """The headline scores that these records have, whichever way they were asked.

    records: in order.
    """
    directions: dict[ScoreKey, bool] = {}
    for record in records:
        if record.status == "ok":
            for score in record.scores:
                key = (score.task, score.metric, score.filter)
                directions[key] = score.higher_is_better
    return _declared(directions) + _first_of_unknown(directions)


def _declared(directions: dict[ScoreKey, bool]) -> list[Headline]:
    """The headline scores of registered tasks, on real and on embedded data."""
    columns = []
    for task in ordered_tasks():
        for score in task.scores:
            if not score.headline:
                continue
            for name in record_names(task.name):
                key = (name, score.metric, score.filter)
                if key in directions:
                    columns.append(Headline(*key, directions[key], score.screen))
    return columns


def _first_of_unknown(directions: dict[ScoreKey, bool]) -> list[Headline]:
    """One score of every task that is neither registered nor a part of a registered one."""
    known: set[str] = set()
    prefixes: list[str] = []
    for task in ordered_tasks():
        names = record_names(task.name)
        known.update(names)
        if task.has_subjects:
            for name in names:
                prefixes.append(f"{name}_")
    columns = []
    for key, higher in directions.items():
        name = key[0]
        if name not in known and not name.startswith(tuple(prefixes)):
            known.add(name)
            columns.append(Headline(*key, higher))
    return columns
