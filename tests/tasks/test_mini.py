"""The embedded default data: true sums, the hub's columns, the same in every process."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest

from places import REAL_DATA
from qbench.errors import ConfigError, DataError
from qbench.tasks import mini
from qbench.tasks.mini_source import MiniSource

ROWS = {
    "gsm8k_train": 64,
    "gsm8k_test": 200,
    "mmlu_test": 280,
    "arc_easy": 120,
    "arc_challenge": 60,
}
HUB = {
    "gsm8k_train": "gsm8k/train",
    "gsm8k_test": "gsm8k/test",
    "mmlu_test": "mmlu/test",
    "arc_easy": "ai2_arc/ARC-Easy/test",
    "arc_challenge": "ai2_arc/ARC-Challenge/test",
}
GSM8K, ARC = ("gsm8k_train", "gsm8k_test"), ("arc_easy", "arc_challenge")
PARTS = ("calibration", "evaluation")
STEP = re.compile(r"(\S+)=\$?<<([^=<>]+)=(\d+)>>(\d+)")
DIGEST = """
import hashlib, json
from qbench.tasks import mini
found = [mini.rows(table) for table in {tables!r}] + [mini.text(part) for part in {parts!r}]
print(*(hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12] for value in found))
"""


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def without_space(text: str) -> str:
    return "".join(text.split())


def hub(table: str) -> list[dict]:
    path = REAL_DATA / f"{table}.parquet"
    if not path.is_file():
        pytest.skip(f"no task data at {path}")
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.mark.parametrize("table", ROWS)
def test_a_table_is_complete_distinct_and_the_same_each_time(table):
    rows = mini.rows(table)
    assert len(rows) == ROWS[table]
    assert len({json.dumps([row["question"], row.get("choices")]) for row in rows}) == len(rows)
    rows[0].clear()
    assert mini.rows(table) == mini.rows(table)
    assert all(mini.rows(table)[0].values())


@pytest.mark.parametrize("table", ROWS)
def test_columns_are_those_of_the_hub(table):
    def form(value):
        if isinstance(value, dict):
            return {key: form(part) for key, part in value.items()}
        return [type(value[0])] if isinstance(value, list) else type(value)

    theirs = form(hub(HUB[table])[0])
    assert all(form(row) == theirs and list(row) == list(theirs) for row in mini.rows(table))


def test_tables_and_texts_are_the_same_in_every_process(tmp_path):
    code = DIGEST.format(tables=tuple(ROWS), parts=PARTS)
    here = [digest(mini.rows(table)) for table in ROWS] + [
        digest(mini.text(part)) for part in PARTS
    ]
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stdout.split() == here


def test_word_problems_are_the_same_in_every_python():
    # A change here changes every mini-gsm8k score: make it on purpose.
    assert [digest(mini.rows(table)) for table in GSM8K] == ["804fccc86b38", "aa8a38bc6763"]


def test_the_hashes_in_records_stay_what_they_were():
    # Those of the questions; the texts differ between versions of Python.
    source = MiniSource()
    hashes = {name: source.sha256(name)[:12] for name in ("gsm8k", *ARC, "mmlu")}
    assert hashes == {
        "gsm8k": "362d9f973957",
        "arc_easy": "3e13b36ba0f0",
        "arc_challenge": "edf9c223bb67",
        "mmlu": "7ee28fa35f21",
    }


@pytest.mark.parametrize(
    "row", [row for table in GSM8K for row in mini.rows(table)], ids=lambda row: digest(row)
)
def test_each_worked_solution_is_true_and_ends_in_its_answer(row):
    *lines, last = row["answer"].split("\n")
    assert 2 <= len(lines) <= 5
    known = {Fraction(number) for number in re.findall(r"\d+", row["question"])} | {
        Fraction(2),
        Fraction(12),
        100,
    }
    for line in lines:
        ((shown, annotated, claimed, printed),) = STEP.findall(line)
        assert shown == annotated and claimed == printed and line.endswith(".")
        first, *rest = re.split(r"([-+*/])", annotated)
        assert not ({"+", "-"} & set(rest) and {"*", "/"} & set(rest))
        value = Fraction(first)
        for sign, number in zip(rest[::2], map(Fraction, rest[1::2]), strict=True):
            value = {
                "+": value + number,
                "-": value - number,
                "*": value * number,
                "/": value / number,
            }[sign]
        assert value == int(claimed) > 1
        assert {Fraction(number) for number in [first, *rest[1::2]]} <= known, (
            "a step uses a number from nowhere"
        )
        known.add(value)
    assert last == f"#### {claimed}"
    assert not re.search(r"[{}\[\]]|\s\s", row["question"] + row["answer"].replace("\n", ""))
    assert row["question"].endswith("?")


def test_word_problems_vary_and_train_shares_none_with_test():
    def shape(row):
        return re.sub(r"\d+|\b[A-Z]\w+\b|\b(?:he|she|his|her)\b", "#", row["question"])

    train, test = map(mini.rows, GSM8K)
    assert not {row["question"] for row in train} & {row["question"] for row in test}
    assert not {row["answer"] for row in train} & {row["answer"] for row in test}
    numbers = Counter((shape(row), *re.findall(r"\d+", row["question"])) for row in train + test)
    assert max(numbers.values()) == 1
    assert len({row["answer"].rpartition(" ")[2] for row in test}) >= 100
    assert (
        len({re.sub(r"\W*\d+\W*|\b[A-Z]\w+\b", "#", row["question"])[-30:] for row in train}) >= 10
    )


def test_each_mmlu_subject_has_its_questions():
    rows = mini.rows("mmlu_test")
    counts = Counter(row["subject"] for row in rows)
    assert len(counts) == 57
    assert {subject: count for subject, count in counts.items() if count != 5} == {
        "college_chemistry": 3,  # one is not in the file, of one the fifth choice is right
        "college_physics": 4,  # one is in the file twice
        "formal_logic": 4,  # one is not in the file
        "human_aging": 4,  # one is not in the file
    }
    assert len({(row["question"], row["subject"], *row["choices"]) for row in rows}) == len(rows)
    for row in rows:
        texts = [row["question"], *row["choices"]]
        assert len(row["choices"]) == 4 and row["answer"] in range(4)
        assert all(text and text == text.strip() for text in texts)
        assert not any(
            re.search(r"\n\(?[A-E]\)|^A: |Let's think|The answer is", text, re.M) for text in texts
        )


def test_mmlu_questions_are_those_of_the_development_split():
    theirs = defaultdict(dict)
    for row in hub("mmlu/dev"):
        theirs[row["subject"]][without_space(row["question"])] = row
    differing, used = Counter(), set()
    for row in mini.rows("mmlu_test"):
        question, known = without_space(row["question"]), theirs[row["subject"]]
        (nearest,) = difflib.get_close_matches(question, known, n=1, cutoff=0.9)
        used.add((row["subject"], nearest))
        differing["question"] += question != nearest
        differing["choices"] += list(map(without_space, row["choices"])) != [
            without_space(choice) for choice in known[nearest]["choices"]
        ]
        differing["answer"] += row["answer"] != known[nearest]["answer"]
    assert len(used) == 280
    # The carried file has eight questions and four sets of choices in a slightly different spelling
    # (a full stop, a bracket, "there are" for "they are", X for x, "year 1" for "year 2"), and
    # corrects one wrong answer of the split (high_school_computer_science: B, which steps 3 and 4
    # complete the algorithm).
    assert differing == {"question": 8, "choices": 4, "answer": 1}


def prompts() -> dict[str, str]:
    import lm_eval

    path = (
        Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    )
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda found: None, "No such file"),
        (lambda found: "{", "Expecting property name"),
        (lambda found: json.dumps({"anatomy": found["anatomy"]}), "1 subjects instead of 57"),
        (
            lambda found: json.dumps(found | {"anatomy": found["anatomy"].replace("(D) ", "")}),
            "question 1 of anatomy",
        ),
        (
            lambda found: json.dumps(found | {"anatomy": found["anatomy"].replace("\nQ: ", "\n")}),
            "anatomy is not",
        ),
        (lambda found: json.dumps(found | {"anatomy": 3}), "no attribute"),
    ],
    ids=["missing", "not-json", "subjects", "choices", "questions", "type"],
)
def test_a_broken_mmlu_file_is_refused_in_one_sentence(tmp_path, monkeypatch, spoil, reason):
    path = tmp_path / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    path.parent.mkdir(parents=True)
    content = spoil(prompts())
    if content is not None:
        path.write_text(content, encoding="utf-8")
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(mini.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(
        DataError, match=f"no MMLU questions in .*{reason}.*install lm_eval"
    ) as caught:
        mini.rows("mmlu_test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ARC)
def test_science_questions_are_well_formed_and_balanced(table):
    rows = mini.rows(table)
    kind = table.removeprefix("arc_")
    assert [row["id"] for row in rows] == [
        f"mini-{kind}-{number:03}" for number in range(1, len(rows) + 1)
    ]
    for row in rows:
        assert row["choices"]["label"] == list("ABCD")
        assert len(set(row["choices"]["text"])) == 4
        assert all(
            text == text.strip() and text for text in (row["question"], *row["choices"]["text"])
        )
    for letter, count in Counter(row["answerKey"] for row in rows).items():
        assert letter in "ABCD" and 0.2 <= count / len(rows) <= 0.3


@pytest.mark.parametrize("table", ARC)
def test_the_right_choice_is_not_told_by_its_length(table):
    gold, others, longest, shortest = [], [], 0, 0
    for row in mini.rows(table):
        lengths = [len(text) for text in row["choices"]["text"]]
        mine = lengths.pop("ABCD".index(row["answerKey"]))
        gold.append(mine)
        others += lengths
        longest += mine > max(lengths)
        shortest += mine < min(lengths)
    assert 0.85 <= mean(gold) / mean(others) <= 1.1
    assert max(longest, shortest) / len(gold) <= 0.3


def test_easy_and_challenge_share_no_question():
    easy, challenge = ({row["question"] for row in mini.rows(table)} for table in ARC)
    assert not easy & challenge


def test_the_halves_of_the_text_are_large_equal_and_disjoint():
    parts = {part: mini.text(part) for part in PARTS}
    calibration, evaluation = (sum(map(len, parts[part])) for part in PARTS)
    assert min(calibration, evaluation) > 100_000
    assert abs(calibration - evaluation) < 0.02 * calibration
    paragraphs = [
        " ".join(paragraph.split())
        for part in PARTS
        for topic in parts[part]
        for paragraph in re.split(r"\n\s*\n", topic)
    ]
    assert max(Counter(paragraphs).values()) == 1
    for topic in parts["calibration"] + parts["evaluation"]:
        assert topic == topic.strip() and len(topic) >= 200
        assert not re.search(r"^[ *=\-~^\"+|]{3,}$", topic, re.M)
    assert mini.text("calibration") == parts["calibration"]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown mini table 'gsm8k'.*arc_challenge, arc_easy"):
        mini.rows("gsm8k")
    with pytest.raises(ConfigError, match=r"'calibrate'. Did you mean 'calibration'"):
        mini.text("calibrate")
