"""Which scores come first, what cells and scores are called, and how a number is written: shared by all reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qbench.errors import DataError
from qbench.records import Cell, Record, Score, TaskSpec

PERCENT = frozenset({"acc", "acc_norm", "exact_match", "top1_agreement"})
HEADLINES: tuple[tuple[str, str, str], ...] = (  # task without its `mini-`, metric, filter
    *(("wikitext", "perplexity", "none"), ("text", "perplexity", "none")),
    *(("divergence", "kl_mean", "none"), ("divergence", "top1_agreement", "none")),
    *(
        (task, metric, "none")
        for task in ("arc_easy", "arc_challenge", "mmlu")
        for metric in ("acc", "gold_logprob")
    ),
    *(("gsm8k", "exact_match", "strict-match"), ("gsm8k", "exact_match", "flexible-extract")),
    ("gsm8k", "gold_nll", "none"),
)
SCREEN = {  # what of these goes on the screen, and its short name; where it is crowded the last ones go first
    "perplexity": "ppl",
    "kl_mean": "KL",
    "top1_agreement": "top-1 %",
    "arc_easy acc": "acc %",
    "arc_easy gold_logprob": "logprob",
    "gsm8k gold_nll": "nll",
}
MINI_NOTICE = "mini tasks are stand-ins shipped with qbench: not comparable with published scores"


@dataclass(frozen=True)
class Headline:
    """One score that people look at first: a column of the wide table, and a picture."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool

    @property
    def title(self) -> str:
        """`arc_easy acc %` or `gsm8k exact_match % (strict-match)`."""
        unit = " %" if self.metric in PERCENT else ""
        return f"{self.task} {self.metric}{unit}" + (
            f" ({self.filter})" if self.filter != "none" else ""
        )

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
        prefix, task = (
            ("mini-", self.task[5:]) if self.task.startswith("mini-") else ("", self.task)
        )
        name = SCREEN.get(f"{task} {self.metric}") or SCREEN.get(self.metric)
        return name and f"{prefix}\n{task}\n{name} {self.arrow}"

    def of(self, record: Record) -> Score | None:
        """This score of a finished cell."""
        wanted = (self.task, self.metric, self.filter)
        scores = record.scores if record.status == "ok" else ()
        return next(
            (score for score in scores if (score.task, score.metric, score.filter) == wanted), None
        )


def require(records: Sequence[Record]) -> None:
    """DataError where there is nothing to report."""
    if not records:
        raise DataError(
            "there are no records to report; give a run's folder that holds at least one finished cell"
        )


def unquantized(record: Record) -> bool:
    """Whether this is the baseline, the model as it is."""
    return record.cell.method == "none"


def params_text(cell: Cell) -> str:
    """`clip=none period=4`, sorted by name."""
    return " ".join(f"{key}={value}" for key, value in sorted(cell.params.items()))


def ordered(records: Iterable[Record]) -> list[Record]:
    """By model, bits (the unquantized model first), method, parameters, group size."""

    def key(record: Record) -> tuple[object, ...]:
        cell, scheme = record.cell, record.cell.scheme
        bits, group = (scheme.bits, scheme.group_size or 1 << 30) if scheme else (-1, 0)
        return (
            cell.model,
            bits,
            cell.method != "none",
            cell.method,
            params_text(cell),
            group,
            record.id,
        )

    return sorted(records, key=key)


def headlines(records: Sequence[Record]) -> list[Headline]:
    """The headline scores that these records have, in order; of a task we do not know, its first score."""
    found = {
        (score.task, score.metric, score.filter): score.higher_is_better
        for record in ordered(records)
        if record.status == "ok"
        for score in record.scores
    }
    wanted = [
        (prefix + task, metric, kind)
        for task, metric, kind in HEADLINES
        for prefix in ("", "mini-")
    ]
    keys = [key for key in wanted if key in found]
    known = {task for task, *_ in HEADLINES}
    for key in found:
        task = key[0].removeprefix("mini-")
        if (
            task not in known
            and not task.startswith("mmlu_")
            and key[0] not in {other[0] for other in keys}
        ):
            keys.append(key)
    return [Headline(*key, found[key]) for key in keys]


def protocol(record: Record, task: str) -> TaskSpec | None:
    """How this cell was asked to run that task: scores of different protocols are not comparable."""
    return next((spec for spec in record.cell.tasks if spec.name == task), None)


def names(records: Sequence[Record], group: bool = True) -> dict[str, str]:
    """Each cell's name by its id: method, parameters, and what else tells it from its siblings, but not the bits."""
    seen: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for record in records:
        for key, value in _traits(record.cell).items():
            seen.setdefault(_family(record.cell), {}).setdefault(key, set()).add(value)
    result = {}
    for record in records:
        varied = seen[_family(record.cell)]
        extra = [
            v
            for k, v in _traits(record.cell).items()
            if len(varied[k]) > 1 and (group or k != "group")
        ]
        method = "unquantized" if unquantized(record) else record.cell.method
        result[record.id] = " ".join(
            part for part in (method, params_text(record.cell), *extra) if part
        )
    return result


def _family(cell: Cell) -> tuple[str, ...]:
    return cell.model, cell.method, params_text(cell)


def _traits(cell: Cell) -> dict[str, str]:
    scheme, calibration = cell.scheme, cell.calibration
    return {
        "group": f"g{scheme.group_size}" if scheme and scheme.group_size else "channel",
        "symmetric": "sym" if scheme and scheme.symmetric else "",
        "calibration": f"{calibration.data}:{calibration.samples}x{calibration.length}"
        if calibration
        else "",
        "seed": f"seed={cell.seed}",
        "dtype": cell.dtype,
        "source": f"source={cell.source}",
        "revision": f"revision={cell.revision[:12]}",
    }


def number(value: float, stderr: float | None, metric: str, digits: int = 2, gap: str = " ") -> str:
    """`35.0 ± 0.8`: percent for shares, else as many places as give the error `digits` significant digits."""
    scale = 100.0 if metric in PERCENT else 1.0
    value, error = value * scale, (stderr or 0.0) * scale
    if not math.isfinite(value):
        return str(value)
    error = error if math.isfinite(error) else 0.0
    if scale == 1.0 and abs(value) < 1e-5 and error < 1e-5:
        return "0"  # the divergence of the unquantized model from itself
    if abs(value) >= 1e5:
        texts = [
            f"{x:.{n}e}".replace("e+0", "e").replace("e+", "e") for x, n in ((value, 1), (error, 0))
        ]
    else:
        smallest = error or abs(value) / 100 or 1.0
        places = 1 if scale > 1 else min(5, max(0, digits - 1 - math.floor(math.log10(smallest))))
        texts = [f"{x:.{places}f}" for x in (value, error)]
    return texts[0] if not error else f"{texts[0]}{gap}±{gap}{texts[1]}"
