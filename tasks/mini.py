"""The embedded default data, named `mini`: needs nothing but what is installed, no network, the same every time.

- gsm8k_train, gsm8k_test: grade-school word problems with worked solutions in GSM8K's form, from the templates below;
- mmlu_test: MMLU development questions, from the chain-of-thought prompts that lm-eval's wheel carries: 280 of the
  285, since the file lacks three, gives one five choices, and has one twice (as the hub has);
- arc_easy, arc_challenge: science questions in ARC's form, written for this project (`mini_arc.json`);
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
from typing import Any, Literal, NamedTuple

from qbench.errors import ConfigError, DataError, unknown_name

_SEED = 2110
_TRAIN, _TEST = 64, 200
_SUBJECTS = 57
_LETTERS = "ABCD"
_SHORTEST_TOPIC = 200
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

_SHE = (
    "Maya",
    "Elena",
    "Priya",
    "Nora",
    "Aisha",
    "Lucy",
    "Hannah",
    "Mei",
    "Sofia",
    "Grace",
    "Ruth",
    "Tara",
)
_HE = (
    "Omar",
    "Daniel",
    "Ravi",
    "Felix",
    "Hugo",
    "Samuel",
    "Kenji",
    "Peter",
    "Mateo",
    "Adam",
    "Jonas",
    "Leon",
)
_PEOPLE = [(name, "she", "her") for name in _SHE] + [(name, "he", "his") for name in _HE]
_SMALL = ("marbles", "stickers", "buttons", "beads", "stamps")
_GOODS = ("jackets", "lamps", "chairs", "clocks")


class _Template(NamedTuple):
    """A family of problems. draw: name -> the values it is drawn from; `[t=a*b]` in a solution is a step that sets t.

    The expression of a step is worked out from left to right, so it mixes no `+ -` with `* /`. Each
    sentence of a solution becomes a line.
    """

    draw: Mapping[str, Sequence[int | str]]
    question: str
    solution: str


_TEMPLATES = (
    _Template(
        {"a": range(3, 13), "b": range(6, 25), "c": range(4, 40), "d": range(3, 10), "x": _SMALL},
        "{name} buys {a} boxes of {x} with {b} {x} in each box. {He} gives {c} {x} to {his} cousin and puts the rest "
        "into {d} bags, the same number in each. How many {x} are in each bag?",
        "{name} buys [t=a*b] {x}. After the gift, {he} has [r=t-c] {x} left. Each bag holds [e=r/d] {x}.",
    ),
    _Template(
        {
            "a": range(6, 16),
            "b": range(8, 25),
            "c": range(11, 50),
            "x": ("muffins", "rolls", "cookies", "bagels"),
        },
        "A bakery bakes {a} trays of {x} with {b} {x} on each tray. It sells {c} {x} in the morning and twice as many "
        "in the afternoon. How many {x} are left at the end of the day?",
        "The bakery bakes [t=a*b] {x}. In the afternoon it sells [p=c*2] {x}. In the whole day it sells [s=c+p] {x}. "
        "At the end of the day, [r=t-s] {x} are left.",
    ),
    _Template(
        {
            "a": range(9, 25),
            "b": range(3, 9),
            "c": range(3, 7),
            "d": range(60, 200),
            "x": ("bicycle", "desk", "guitar"),
        },
        "{name} earns ${a} an hour. {He} works {b} hours a day on {c} days of the week. With this week's pay {he} buys "
        "a {x} for ${d}. How many dollars of the pay are left?",
        "{name} earns $[p=a*b] a day. In a week {he} earns $[w=p*c]. After buying the {x}, {he} has $[z=w-d] left.",
    ),
    _Template(
        {
            "a": range(180, 420, 5),
            "b": range(12, 30),
            "c": range(3, 7),
            "d": range(20, 50),
            "e": range(3, 9),
        },
        "{name} is reading a book of {a} pages. {He} read {b} pages a day for {c} days and then another {d} pages on "
        "Saturday. {He} wants to read the rest in {e} days, the same number of pages each day. How many pages should "
        "{he} read a day?",
        "In the first {c} days {name} read [t=b*c] pages. With the pages of Saturday, that makes [s=t+d] pages. There "
        "are [r=a-s] pages left. So {he} should read [p=r/e] pages a day.",
    ),
    _Template(
        {"a": range(20, 165, 5), "p": range(10, 60, 5), "n": range(2, 9), "x": _GOODS},
        "A store sells {x} for ${a} each. This week all prices are {p} percent lower. How many dollars does {name} "
        "pay for {n} {x} this week?",
        "The price of each falls by $[d=a*p/100]. So each now costs $[q=a-d]. For {n} {x}, {name} pays $[t=n*q].",
    ),
    _Template(
        {
            "a": range(3, 10),
            "b": range(8, 19),
            "c": range(2, 6),
            "d": range(4, 13),
            "x": ("tomatoes", "peppers"),
        },
        "{name} grows {x} in {a} rows of {b} plants. In each row, {c} of the plants die. Each plant that lives bears "
        "{d} {x}. How many {x} does {name} harvest?",
        "In each row, [s=b-c] plants live. In all the rows together, [t=a*s] plants live. {name} harvests [h=t*d] {x}.",
    ),
    _Template(
        {
            "a": range(40, 66),
            "b": range(2, 5),
            "c": range(30, 61),
            "d": range(2, 6),
            "e": range(20, 36),
        },
        "{name} drives for {b} hours at {a} miles an hour and then for {d} hours at {c} miles an hour. {His} car needs "
        "one gallon of gas for every {e} miles. How many gallons of gas does the car need for the whole trip?",
        "At first {name} drives [s=a*b] miles. Then {he} drives another [t=c*d] miles. The whole trip is [z=s+t] miles "
        "long. The car needs [g=z/e] gallons of gas.",
    ),
    _Template(
        {
            "a": range(9, 16),
            "k": (4, 5),
            "b": range(2, 13),
            "c": range(3, 16),
            "x": ("aunt", "uncle", "coach"),
        },
        "{name} is {a} years old. {His} {x} is {k} times as old as {name}. The school doctor is {b} years younger than "
        "the {x}. How old will the doctor be in {c} years?",
        "The {x} is [u=a*k] years old. The doctor is [t=u-b] years old. In {c} years the doctor will be [f=t+c].",
    ),
    _Template(
        {
            "a": range(3, 15),
            "b": range(14, 31),
            "c": range(3, 13),
            "d": range(8, 31),
            "x": ("vans", "boats", "wagons"),
        },
        "A school has {a} classes of {b} students. All the students and {c} teachers go on a trip in {x} that hold {d} "
        "people each, and every place is taken. How many {x} are there?",
        "The school has [s=a*b] students. With the teachers, [p=s+c] people go. There are [n=p/d] {x}.",
    ),
    _Template(
        {"a": range(8, 46), "k": range(2, 7), "b": range(3, 31), "x": _SMALL},
        "{name} has {a} {x}. {other} has {k} times as many {x} as {name}, and {third} has {b} fewer {x} than {other}. "
        "How many {x} do the three of them have together?",
        "{other} has [y=a*k] {x}. {third} has [z=y-b] {x}. Together they have [t=a+y+z] {x}.",
    ),
    _Template(
        {
            "a": range(11, 25),
            "b": range(5, 11),
            "c": range(2, 6),
            "d": range(2, 9),
            "f": (100, 150, 200),
        },
        "Tickets for a concert cost ${a} for adults and ${b} for children. {name} buys tickets for {c} adults and {d} "
        "children and pays with ${f}. How many dollars does {he} get back?",
        "The tickets for the adults cost $[s=a*c]. The tickets for the children cost $[t=b*d]. All the tickets cost "
        "$[z=s+t]. {name} gets back $[r=f-z].",
    ),
    _Template(
        {"a": range(8, 41), "b": range(4, 7), "c": range(6, 25), "e": range(3, 7)},
        "{name} has {a} hens, and each hen lays {b} eggs a week. {He} keeps {c} eggs a week for {his} family and sells "
        "the others in boxes of 12 for ${e} a box. How many dollars does {he} earn a week?",
        "The hens lay [t=a*b] eggs a week. {name} sells [s=t-c] of them. That makes [n=s/12] boxes. {He} earns "
        "$[m=n*e] a week.",
    ),
)


def rows(table: str) -> list[dict[str, Any]]:
    """The rows of a table, in a fixed order; ConfigError for an unknown table, DataError where its source is broken."""
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


def text(part: Literal["calibration", "evaluation"]) -> list[str]:
    """One half of CPython's language reference, by topic. No paragraph is in both halves or twice in one.

    The text differs between versions of Python.
    """
    halves: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    if part not in halves:
        raise ConfigError(unknown_name("part of the mini text", part, halves))
    for topic in sorted(_topics(), key=len, reverse=True):
        min(halves.values(), key=lambda half: sum(map(len, half))).append(topic)
    return halves[part]


def _topics() -> list[str]:
    """The topics without their repetitions: the reference has many paragraphs in two topics or more."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python has no pydoc_data.topics; install its full library or use --data"
        ) from error
    seen: set[str] = set()
    found = []
    for _, topic in sorted(topics.items()):
        body = re.sub(
            r"^[ *=\-~^\"+|]{3,}$\n?", "\n", topic, flags=re.M
        )  # underlines and rules of tables
        fresh = []
        for paragraph in re.split(r"\n\s*\n", body):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                fresh.append(paragraph.rstrip())
            seen.add(words)
        found.append("\n\n".join(fresh).strip())
    return [topic for topic in found if len(topic) >= _SHORTEST_TOPIC]


def _problems() -> list[dict[str, Any]]:
    """All word problems, template by template in turn; no two of them share a template and its numbers."""
    rng = random.Random(_SEED)
    seen: set[tuple[int, ...]] = set()
    problems: list[dict[str, Any]] = []
    while len(problems) < _TRAIN + _TEST:
        turn = len(problems) % len(_TEMPLATES)
        values = {name: rng.choice(choices) for name, choices in _TEMPLATES[turn].draw.items()}
        people = rng.sample(_PEOPLE, 3)
        numbers = (turn, *(value for value in values.values() if isinstance(value, int)))
        try:
            problem = _problem(_TEMPLATES[turn], values, people)
        except ArithmeticError:
            continue
        if numbers not in seen:
            seen.add(numbers)
            problems.append(problem)
    return problems


def _problem(
    template: _Template, values: dict[str, Any], people: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """One problem with its worked solution; ArithmeticError where a step does not give a whole number above 1."""
    (name, he, his), (other, *_), (third, *_) = people
    words = {"name": name, "other": other, "third": third, "he": he, "his": his}
    words |= {"He": he.capitalize(), "His": his.capitalize()}
    results: dict[str, int] = {}

    def step(match: re.Match[str]) -> str:
        dollar, result, expression = match.groups()
        shown = re.sub(r"[a-z]", lambda found: str({**values, **results}[found[0]]), expression)
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
    path = Path(__file__).parent / "mini_arc.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))[table]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); install qbench again") from error
    return [
        {
            "id": name,
            "question": question,
            "choices": {"text": texts, "label": list(_LETTERS)},
            "answerKey": key,
        }
        for name, question, texts, key in stored
    ]


# The carried file has the end of one worked answer in front of the question that follows it.
_DEBRIS = "The symmetric group $S_n$ has $\nactorial{n}$ elements, hence it is not true that $S_{10}$ has 10 elements.\n"
_QUESTION = re.compile(
    r"(.+?)\n\(A\) (.+?)\s\(B\) (.+?)\s\(C\) (.+?)\s\(D\) (.+?)(\s\(E\) .+?)?\nA: .*The answer is \(([A-E])\)\.",
    re.S,
)


def _mmlu() -> list[dict[str, Any]]:
    """The distinct questions with four choices of lm-eval's chain-of-thought prompts, by subject."""
    spec = importlib.util.find_spec("lm_eval")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("lm_eval")
    path = folder / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
        if len(prompts) != _SUBJECTS:
            raise ValueError(f"{len(prompts)} subjects instead of {_SUBJECTS}")
        found = [
            row for subject, prompt in sorted(prompts.items()) for row in _subject(subject, prompt)
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"no MMLU questions in {path} ({error}); install lm_eval>=0.4.13,<0.5 or name a folder with --data"
        ) from error
    return found


def _subject(subject: str, prompt: str) -> list[dict[str, Any]]:
    head, *blocks = re.split(r"\n\nQ: ", prompt.strip())
    if not head.startswith("The following are multiple choice questions") or len(blocks) not in (
        4,
        5,
    ):
        raise ValueError(f"{subject} is not a prompt with 4 or 5 questions")
    found: list[dict[str, Any]] = []
    for number, block in enumerate(blocks, 1):
        match = _QUESTION.fullmatch(block.strip())
        if not match:
            raise ValueError(f"question {number} of {subject} has another form")
        question, *choices, fifth, letter = match.groups()
        if fifth is None:
            answer = _LETTERS.index(letter)
            question, *choices = (part.strip() for part in (question, *choices))
            question = question.removeprefix(_DEBRIS)
            row = {"question": question, "subject": subject, "choices": choices, "answer": answer}
            if row not in found:
                found.append(row)
    return found
