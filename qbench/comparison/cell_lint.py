"""What may be wrong with the evaluation of one cell, found without other cells.

Each lint is a function in LINTS from an `Evaluated` to a `Caution` for everything that it finds. No
lint says that a model is bad: it says that a score may not mean what it seems to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbench.comparison.samples import items_of
from qbench.records import Caution, Cell, Score
from qbench.stats.shares import mcnemar
from qbench.tasks.registry import declared_score

Row = Mapping[str, Any]
MANY = 0.1  # share of answers that are empty, cut off or repeat themselves
ALPHA = 0.05
STRICT, FLEXIBLE = "strict-match", "flexible-extract"
FAR_BELOW = 0.05  # of the share of right answers
# Models that are another model without BOS; others lose little of a long text's likelihood.
LOST_WITHOUT_BOS = ("gemma",)


@dataclass(frozen=True)
class Evaluated:
    """A cell as it was judged.

    facts: by task, what it told (`Record.evaluation`). rows: by task, its items. coverage,
    scores: of `Record`.
    """

    cell: Cell
    facts: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Score] = ()


def lint_cell(evaluated: Evaluated) -> tuple[Caution, ...]:
    """All that the lints say, in their order."""
    cautions: list[Caution] = []
    for lint in LINTS:
        cautions += lint(evaluated)
    return tuple(cautions)


def without_template(evaluated: Evaluated) -> Iterator[Caution]:
    """A model that brings a chat template, and prompts that are not put into it."""
    bare = [name for name, facts in evaluated.facts.items() if _lacks_template(facts)]
    if bare:
        text = (
            f"the model brings a chat template and was asked {', '.join(bare)} without it; "
            "--chat-template asks an instruct model as its maker does"
        )
        yield Caution(kind="template", text=text)


def _lacks_template(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("brings_template")) and facts.get("chat_template") is None


def strict_below_flexible(evaluated: Evaluated) -> Iterator[Caution]:
    """Right answers that the strict filter does not accept as they are written."""
    for task, rows in evaluated.rows.items():
        right: dict[str, dict[Any, bool]] = {STRICT: {}, FLEXIBLE: {}}
        for row in rows:
            if row.get("filter") in right and "exact_match" in row:
                right[row["filter"]][row["doc_id"]] = row["exact_match"] == 1
        items = right[STRICT].keys() & right[FLEXIBLE].keys()
        missed = sum(right[FLEXIBLE][item] and not right[STRICT][item] for item in items)
        gained = sum(right[STRICT][item] and not right[FLEXIBLE][item] for item in items)
        far = items and (missed - gained) / len(items) >= FAR_BELOW
        if far and mcnemar(gained, missed) < ALPHA:
            text = (
                f"{missed} of {len(items)} answers are right by {FLEXIBLE} and wrong by {STRICT}, "
                f"{gained} the other way round: the score by {STRICT} is of the form, not of the "
                "answer"
            )
            yield Caution(kind="strict", task=task, text=text)


def odd_answers(evaluated: Evaluated) -> Iterator[Caution]:
    """Answers that are empty, end at the limit, or repeat themselves."""
    kinds = {
        "empty": ("empty", "are empty"),
        "cut_off": ("cut-off", "end at the limit of {max_gen_toks} tokens"),
        "looping": ("looping", "end in a repetition"),
    }
    for task, facts in evaluated.facts.items():
        written = facts.get("written", 0)
        for key, (kind, words) in kinds.items():
            count = facts.get(key, 0)
            if written and count / written >= MANY:
                text = f"{count} of {written} answers {words.format(**facts)}"
                yield Caution(kind=kind, task=task, text=text)


def cut_prompts(evaluated: Evaluated) -> Iterator[Caution]:
    """Prompts that did not fit the model's context, so that a different question was asked."""
    for task, facts in evaluated.facts.items():
        if facts.get("cut_prompts"):
            text = f"{facts['cut_prompts']} prompts did not fit the model's context and were cut"
            yield Caution(kind="cut-prompts", task=task, text=text)


def missing_bos(evaluated: Evaluated) -> Iterator[Caution]:
    """Prompts, or windows of a model that depends on it, without the BOS of the training."""
    for task, facts in evaluated.facts.items():
        bos = facts.get("trained_bos")
        if bos is None:
            continue
        if "beginning" in facts and bos not in facts["beginning"]:
            text = f"prompts do not begin with {bos}, with which the model was trained"
            yield Caution(kind="bos", task=task, text=text)
        windows = facts.get("windows_without_bos", 0)
        if windows and str(facts.get("model_type", "")).startswith(LOST_WITHOUT_BOS):
            text = (
                f"{windows} windows do not begin with {bos}, as in published perplexities, and "
                "this family is another model without it"
            )
            yield Caution(kind="bos", task=task, text=text)


def appended_eos(evaluated: Evaluated) -> Iterator[Caution]:
    """A tokenizer that ends every text with EOS, which is removed here and may not be elsewhere."""
    endings = {tuple(facts["ending"]) for facts in evaluated.facts.values() if facts.get("ending")}
    for ending in sorted(endings):
        text = (
            f"the tokenizer ends every text with {' '.join(ending)}, which was taken off; other "
            "programs that do not, judge continuations of an ended text"
        )
        yield Caution(kind="eos", text=text)


def overlapping_calibration(evaluated: Evaluated) -> Iterator[Caution]:
    """Evaluated text that the calibration text contains."""
    if evaluated.cell.calibration is None:
        return
    for task, facts in evaluated.facts.items():
        overlap = facts.get("overlap")
        if overlap and overlap["items"]:
            text = (
                f"{overlap['items']} of {overlap['of']} evaluated texts share {overlap['words']} "
                f"words in a row with the calibration text, such as {overlap['example']!r}"
            )
            yield Caution(kind="overlap", task=task, text=text)


def coverage(evaluated: Evaluated) -> Iterator[Caution]:
    """Layers that were left out, or have other bits than asked for; files as large as before."""
    facts = evaluated.coverage
    scheme = evaluated.cell.scheme
    if not facts:
        return
    wanted = facts.get("asked")
    if facts["left"] and (wanted is None or sum(wanted.values()) != facts["quantized"]):
        names = ", ".join(facts["left"][:3])
        more = ", ..." if len(facts["left"]) > 3 else ""
        text = (
            f"{facts['quantized']} of {facts['blocks']} linear layers inside the blocks were "
            f"quantized; left as they were: {names}{more}"
        )
        yield Caution(kind="coverage", text=text)
    if scheme is not None:
        wanted = wanted or {str(scheme.bits): facts["bits"].get(str(scheme.bits))}
        others = [
            f"{count} layers have {bits}"
            for bits, count in facts["bits"].items()
            if wanted.get(bits) != count
        ]
        if others:
            text = f"{' and '.join(wanted)} bits were asked, and {', '.join(others)}"
            yield Caution(kind="coverage", text=text)
    if facts["bytes"] >= facts["original_bytes"]:
        text = (
            f"the files have {facts['bytes'] / 1e6:.1f} MB and the unquantized model "
            f"{facts['original_bytes'] / 1e6:.1f} MB: nothing was gained"
        )
        yield Caution(kind="size", text=text)


def no_mean(evaluated: Evaluated) -> Iterator[Caution]:
    """A headline score that its rows do not add up to, which differences are not taken of."""
    for score in evaluated.scores:
        declared = declared_score(score.task, score.metric)
        of_task = evaluated.rows.get(score.task, ())
        is_whole = score.task in evaluated.rows and declared is not None and declared.headline
        if is_whole and items_of(of_task, score) is None:
            text = (
                f"the score {score.metric} is not the mean of its {score.n} rows with this metric "
                f"and filter {score.filter!r}, so that its differences cannot be tested"
            )
            yield Caution(kind="no-mean", task=score.task, text=text)


LINTS: tuple[Callable[[Evaluated], Iterator[Caution]], ...] = (
    without_template,
    strict_below_flexible,
    odd_answers,
    cut_prompts,
    missing_bos,
    appended_eos,
    overlapping_calibration,
    coverage,
    no_mean,
)
