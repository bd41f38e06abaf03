"""The embedded default data, named `mini`: without a network, and the same every time.

- gsm8k_train, gsm8k_test: grade-school word problems with worked solutions in GSM8K's form, from
  templates written for this project (`mini_gsm8k.json`);
- mmlu_test: MMLU development questions, from the chain-of-thought prompts that lm-eval's wheel
  carries: 280 of the 285, since the file lacks three, gives one five choices, and has one twice (as
  the hub has);
- arc_easy, arc_challenge: science questions in ARC's form, written for this project
  (`mini_arc.json`);
- text: the language reference that every CPython carries (`pydoc_data.topics`).

The columns are those of the hub's data sets. A score on these is not a score on the data sets whose
form they have.
"""

from __future__ import annotations

import importlib.util
import json
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from qbench.errors import ConfigError, DataError, StoreError, unknown_name
from qbench.files.ordinary import json_of, ordinary_text

_SEED = 2110
_TRAIN = 64
_TEST = 200
_SUBJECTS = 57
_LETTERS = "ABCD"
_SHORTEST_TOPIC = 200
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class _Template(NamedTuple):
    """A family of problems.

    draw: name -> the values it is drawn from. `[t=a*b]` in a solution is a step that sets t. The
    expression of a step is worked out from left to right, so it mixes no `+ -` with `* /`. Each
    sentence of a solution becomes a line.
    """

    draw: Mapping[str, Sequence[int | str]]
    question: str
    solution: str


class _Person(NamedTuple):
    """Who a problem is about."""

    name: str
    he: str
    his: str


def rows(table: str) -> list[dict[str, Any]]:
    """The rows of a table, in a fixed order.

    Raises ConfigError for an unknown table, DataError where its source is broken.
    """
    known: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "gsm8k_train": lambda: _problems()[:_TRAIN],
        "gsm8k_test": lambda: _problems()[_TRAIN:],
        "mmlu_test": _mmlu,
        "arc_easy": lambda: _arc("arc_easy"),
        "arc_challenge": lambda: _arc("arc_challenge"),
    }
    if table not in known:
        raise ConfigError(unknown_name("mini table", table, known))
    return known[table]()


def text(part: str) -> list[str]:
    """One half of CPython's language reference, by topic: `calibration` or `evaluation`.

    No paragraph is in both halves or twice in one. The text differs between versions of Python.
    """
    halves: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    if part not in halves:
        raise ConfigError(unknown_name("part of the mini text", part, halves))
    # The longest topic first, each to the half that is shorter so far.
    for topic in sorted(_topics(), key=len, reverse=True):
        shorter = min(halves.values(), key=lambda half: sum(map(len, half)))
        shorter.append(topic)
    return halves[part]


def _topics() -> list[str]:
    """The topics without repetitions: the reference has many paragraphs in two topics or more."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python has no pydoc_data.topics; install its full library or use --data"
        ) from error
    seen: set[str] = set()
    kept = []
    for _, topic in sorted(topics.items()):
        # Underlines and rules of tables are no text.
        body = re.sub(r"^[ *=\-~^\"+|]{3,}$\n?", "\n", topic, flags=re.M)
        fresh = []
        for paragraph in re.split(r"\n\s*\n", body):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                fresh.append(paragraph.rstrip())
            seen.add(words)
        kept.append("\n\n".join(fresh).strip())
    return [topic for topic in kept if len(topic) >= _SHORTEST_TOPIC]


def _carried(name: str) -> Any:
    """The content of a JSON file beside this one; DataError where it is damaged."""
    path = Path(__file__).with_name(name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); install qbench again") from error


def _templates() -> list[_Template]:
    templates = []
    for entry in _carried("mini_gsm8k.json")["templates"]:
        draw = {}
        for name, values in entry["draw"].items():
            if isinstance(values, dict):
                values = range(*values["range"])
            draw[name] = values
        templates.append(_Template(draw, entry["question"], entry["solution"]))
    return templates


def _problems() -> list[dict[str, Any]]:
    """All word problems, template by template in turn; no two share a template and its numbers."""
    templates = _templates()
    people = [_Person(*entry) for entry in _carried("mini_gsm8k.json")["people"]]
    rng = random.Random(_SEED)
    seen: set[tuple[int, ...]] = set()
    problems: list[dict[str, Any]] = []
    while len(problems) < _TRAIN + _TEST:
        turn = len(problems) % len(templates)
        template = templates[turn]
        values = {name: rng.choice(choices) for name, choices in template.draw.items()}
        cast = rng.sample(people, 3)
        numbers = (turn, *(value for value in values.values() if isinstance(value, int)))
        try:
            problem = _problem(template, values, cast)
        except ArithmeticError:
            continue
        if numbers not in seen:
            seen.add(numbers)
            problems.append(problem)
    return problems


def _problem(
    template: _Template, values: dict[str, Any], cast: Sequence[_Person]
) -> dict[str, Any]:
    """One problem with its worked solution.

    Raises ArithmeticError where a step does not give a whole number above 1.
    """
    first, second, third = cast
    words = {
        "name": first.name,
        "other": second.name,
        "third": third.name,
        "he": first.he,
        "his": first.his,
        "He": first.he.capitalize(),
        "His": first.his.capitalize(),
    }
    results: dict[str, int] = {}

    def step(match: re.Match[str]) -> str:
        dollar, result, expression = match.groups()
        known = {**values, **results}
        shown = re.sub(r"[a-z]", lambda letter: str(known[letter[0]]), expression)
        results[result] = _value(shown)
        return f"{shown}={dollar}<<{shown}={results[result]}>>{results[result]}"

    worked = re.sub(r"(\$?)\[(\w)=([^]]+)\]", step, template.solution).format(**values, **words)
    answer = worked.replace(". ", ".\n") + f"\n#### {list(results.values())[-1]}"
    return {"question": template.question.format(**values, **words), "answer": answer}


def _value(expression: str) -> int:
    """Left to right; ArithmeticError unless every intermediate result is a whole number above 1."""
    first, *rest = re.split(r"([-+*/])", expression)
    value = Fraction(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        value = _OPERATIONS[sign](value, int(number))
        if value.denominator > 1 or value < 2:
            raise ArithmeticError(f"{expression} is not a whole number above 1")
    return int(value)


def _arc(table: str) -> list[dict[str, Any]]:
    questions = []
    for name, question, texts, key in _carried("mini_arc.json")[table]:
        choices = {"text": texts, "label": list(_LETTERS)}
        questions.append({"id": name, "question": question, "choices": choices, "answerKey": key})
    return questions


# The carried file has the end of one worked answer in front of the question that follows it.
_DEBRIS = (
    "The symmetric group $S_n$ has $\nactorial{n}$ elements, "
    "hence it is not true that $S_{10}$ has 10 elements.\n"
)
_QUESTION = re.compile(
    r"(.+?)\n\(A\) (.+?)\s\(B\) (.+?)\s\(C\) (.+?)\s\(D\) (.+?)(\s\(E\) .+?)?"
    r"\nA: .*The answer is \(([A-E])\)\.",
    re.S,
)


def _mmlu() -> list[dict[str, Any]]:
    """The distinct questions with four choices of lm-eval's prompts, by subject."""
    spec = importlib.util.find_spec("lm_eval")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("lm_eval")
    path = folder / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    try:
        prompts = json_of(ordinary_text(path))
        if len(prompts) != _SUBJECTS:
            raise ValueError(f"{len(prompts)} subjects instead of {_SUBJECTS}")
        questions = []
        for subject, prompt in sorted(prompts.items()):
            questions += _subject(subject, prompt)
    except (StoreError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"no MMLU questions in {path} ({error}); install lm_eval>=0.4.13,<0.5 or name a "
            "folder with --data"
        ) from error
    return questions


def _subject(subject: str, prompt: str) -> list[dict[str, Any]]:
    """The questions of one subject's prompt; ValueError where it has another form."""
    head, *blocks = re.split(r"\n\nQ: ", prompt.strip())
    is_prompt = head.startswith("The following are multiple choice questions")
    if not is_prompt or len(blocks) not in (4, 5):
        raise ValueError(f"{subject} is not a prompt with 4 or 5 questions")
    rows: list[dict[str, Any]] = []
    for number, block in enumerate(blocks, 1):
        match = _QUESTION.fullmatch(block.strip())
        if not match:
            raise ValueError(f"question {number} of {subject} has another form")
        question, *choices, fifth, letter = match.groups()
        if fifth is not None:
            continue
        row = {
            "question": question.strip().removeprefix(_DEBRIS),
            "subject": subject,
            "choices": [choice.strip() for choice in choices],
            "answer": _LETTERS.index(letter),
        }
        if row not in rows:
            rows.append(row)
    return rows
