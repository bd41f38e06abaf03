"""Every lint on what it is there for, and silent where nothing is odd."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from paired_items import with_items
from qbench.comparison.cell_lint import LINTS, Evaluated, lint_cell
from qbench.comparison.lint import lint
from qbench.comparison.pairs import Pairs
from qbench.records import Caution, Record, Score
from synthetic_records import TASKS, record

CELL = record("gptq", 3).cell
FINE = {
    "brings_template": False,
    "chat_template": None,
    "written": 20,
    "empty": 0,
    "cut_off": 1,
    "looping": 0,
    "max_gen_toks": 256,
    "cut_prompts": 0,
    "trained_bos": "<s>",
    "beginning": ["<s>"],
    "ending": [],
    "model_type": "llama",
    "overlap": {"items": 0, "of": 9, "words": 13, "example": ""},
}
UNLIKE_ITS_ROWS = Score(
    task="gsm8k",
    metric="exact_match",
    filter="strict-match",
    value=0.7,
    stderr=None,
    n=20,
    higher_is_better=True,
)
COVERED = {
    "linear": 15,
    "blocks": 14,
    "quantized": 14,
    "bits": {"3": 14},
    "left": [],
    "bytes": 10,
    "original_bytes": 40,
}


def answers(strict: list[int], flexible: list[int]) -> list[dict]:
    rows = []
    for name, values in (("strict-match", strict), ("flexible-extract", flexible)):
        rows += [{"filter": name, "doc_id": k, "exact_match": v} for k, v in enumerate(values)]
    return rows


def evaluated(facts=None, **changes) -> Evaluated:
    rows = {"gsm8k": answers([1] * 9 + [0] * 11, [1] * 10 + [0] * 10)}
    fine = Evaluated(CELL, {"gsm8k": FINE | (facts or {})}, rows, COVERED)
    return dataclasses.replace(fine, **changes)


def kinds(found: Evaluated) -> list[str]:
    return [caution.kind for caution in lint_cell(found)]


def test_nothing_is_said_where_nothing_is_odd():
    assert lint_cell(evaluated()) == ()
    assert lint_cell(Evaluated(CELL, {})) == ()


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"brings_template": True}, "template", "gsm8k without it"),
        ({"empty": 2}, "empty", "2 of 20 answers are empty"),
        ({"cut_off": 5}, "cut-off", "5 of 20 answers end at the limit of 256 tokens"),
        ({"looping": 20}, "looping", "20 of 20 answers end in a repetition"),
        ({"cut_prompts": 3}, "cut-prompts", "3 prompts"),
        ({"beginning": []}, "bos", "prompts do not begin with <s>"),
        ({"ending": ["</s>"]}, "eos", "ends every text with </s>"),
        ({"overlap": FINE["overlap"] | {"items": 2}}, "overlap", "2 of 9 evaluated texts"),
    ],
)
def test_odd_facts_are_said(facts, kind, words):
    (caution,) = lint_cell(evaluated(facts))
    assert caution.kind == kind and words in caution.text


def test_a_template_that_was_used_is_nothing_to_say():
    assert kinds(evaluated({"brings_template": True, "chat_template": "ab"})) == []


def test_windows_without_bos_are_said_of_families_that_depend_on_it():
    facts = {"trained_bos": "<bos>", "windows_without_bos": 7, "model_type": "gemma3_text"}
    assert kinds(Evaluated(CELL, {"wikitext": facts})) == ["bos"]
    assert kinds(Evaluated(CELL, {"wikitext": facts | {"model_type": "llama"}})) == []


def test_strict_far_below_flexible():
    far = {"gsm8k": answers([0] * 20, [1] * 8 + [0] * 12)}
    (caution,) = lint_cell(evaluated(rows=far))
    assert caution.kind == "strict" and "8 of 20 answers are right by flexible" in caution.text
    chance = {"gsm8k": answers([0] * 20, [1] * 3 + [0] * 17)}
    assert kinds(evaluated(rows=chance)) == [], "three answers may be chance"


def test_overlap_is_nothing_to_a_method_that_does_not_calibrate():
    facts = {"gsm8k": FINE | {"overlap": FINE["overlap"] | {"items": 2}}}
    assert kinds(Evaluated(record("rtn", 3).cell, facts)) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"left": ["a.0.q"], "quantized": 13}, "coverage", "13 of 14 linear layers"),
        ({"bits": {"3": 13, "16.00": 1}}, "coverage", "3 bits were asked, and 1 layers have 16.00"),
        ({"bytes": 40}, "size", "nothing was gained"),
    ],
)
def test_what_a_recipe_has_missed(changes, kind, words):
    (caution,) = lint_cell(evaluated(coverage=COVERED | changes))
    assert caution.kind == kind and words in caution.text


def test_every_lint_has_been_seen_to_speak():
    speaking = evaluated(
        {
            "brings_template": True,
            "empty": 9,
            "cut_prompts": 1,
            "beginning": [],
            "ending": ["</s>"],
            "overlap": FINE["overlap"] | {"items": 1},
        },
        rows={"gsm8k": answers([0] * 20, [1] * 20)},
        coverage=COVERED | {"bytes": 99},
        scores=[UNLIKE_ITS_ROWS],
    )
    assert all(list(lint(speaking)) for lint in LINTS)


# --- of several cells


def test_a_task_that_tells_no_methods_apart_is_named(tmp_path):
    near = [record("none", None)]
    near += [record(method, 3, damage=0.3) for method in ("rtn", "greedy", "alternating")]
    far = [record("none", None), record("rtn", 3, damage=2.0), record("greedy", 3, damage=0.1)]
    draws = [record("none", None), record("rtn", 3, damage=0.3)]
    again = draws[1].cell.model_copy(update={"seed": 1})
    draws.append(draws[1].model_copy(update={"cell": again, "id": again.id}))
    for records, expected in ((near, True), (far, False), (draws, False)):
        records = [with_items(each, tmp_path) for each in records]
        said = lint(records, Pairs(records, tmp_path))
        named = {c.task for cautions in said.values() for c in cautions if c.kind == "indistinct"}
        assert ("mini-text" in named) is expected
    assert "mini-gsm8k" not in lint([near[0]], Pairs(near, tmp_path)), "one cell shows nothing"


def asked_fewer(each: Record) -> Record:
    """The same model, judged by a command that asked the first task alone."""
    cell = each.cell.model_copy(update={"tasks": TASKS[:1]})
    return each.model_copy(update={"cell": cell, "id": cell.id, "scores": each.scores[:1]})


def test_a_model_is_not_held_against_itself_where_two_commands_asked_it(tmp_path):
    alone = record("rtn", 3, damage=0.3)
    twice = [with_items(each, tmp_path) for each in (alone, asked_fewer(alone))]
    assert lint(twice, Pairs(twice, tmp_path)) == {}
    near = [record(method, 3, damage=0.3) for method in ("rtn", "greedy")]
    near = [with_items(each, tmp_path) for each in (*near, *map(asked_fewer, near))]
    said = [c.text for cautions in lint(near, Pairs(near, tmp_path)).values() for c in cautions]
    (text,) = [text for text in said if text.startswith("perplexity")]
    assert "among 2 quantized cells" in text


def test_what_a_record_carries_comes_first():
    carried = record("rtn", 3, warnings=(Caution(kind="size", text="large"),))
    assert [c.kind for c in lint([carried], Pairs([carried], None))[carried.id]] == ["size"]
    assert lint([record("rtn", 3)], Pairs([], None)) == {}


def test_items_that_are_gone_are_missed(tmp_path):
    records = [with_items(record(name, 3), tmp_path) for name in ("rtn", "greedy")]
    first, second = records
    lost = first.scores[0]
    (tmp_path / lost.samples).unlink()
    for folder, tasks in ((tmp_path, [lost.task]), (None, [])):
        said = lint(records, Pairs(records, folder))
        lost_items = [c.task for c in said.get(first.id, []) if c.kind == "lost-items"]
        assert lost_items == tasks
        assert "lost-items" not in {c.kind for c in said.get(second.id, [])}


def lengths(each, folder, tokens):
    """The record with written answers of so many tokens."""
    found = with_items(each, folder)
    path = folder / "samples" / found.id / "mini-gsm8k.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["tokens"] = int(tokens[row["doc_id"]])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_answers_that_became_longer_are_said(tmp_path):
    generator = np.random.default_rng(0)
    before = generator.integers(50, 150, 100)
    base = lengths(record("none", None), tmp_path, before)
    for factor, expected in ((1.5, True), (1.0, False), (0.5, True)):
        after = factor * before + generator.integers(-5, 5, 100)
        other = lengths(record("rtn", 3, damage=0.1), tmp_path, after)
        said = lint([base, other], Pairs([base, other], tmp_path)).get(other.id, [])
        assert [c.kind for c in said if c.kind == "length"] == ["length"] * expected
        if expected:
            (text,) = [caution.text for caution in said if caution.kind == "length"]
            assert float(text.split()[2]) == pytest.approx(factor, abs=0.02)
            cell = base.cell.model_copy(update={"tasks": TASKS[-1:]})
            again = lengths(base.model_copy(update={"cell": cell, "id": cell.id}), tmp_path, before)
            both = [base, again, other]
            found = lint(both, Pairs(both, tmp_path))[other.id]
            assert [c.text for c in found if c.kind == "length"] == [text], "once for both"
