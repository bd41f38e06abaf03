"""How prompts are written: chat templates, what stands before them, how long answers may be."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from qbench.stats.difference import mean_interval
from qbench.tasks import lm
from qbench.tasks.beginnings import prepared
from qbench.tasks.contract import Context
from qbench.tasks.harness import stock_parts
from qbench.tasks.judging import LOOP, _weigh_subjects, loops
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import get_task

MINI = MiniSource()
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(tokenizer):
    """The tokenizer with a chat template."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return own


def asked(name, max_gen_toks=None, chat_template=False, bos=None, **protocol):
    task = get_task(name)
    spec = task.spec(MINI, **protocol)
    return task, task.with_prompts(spec, max_gen_toks, chat_template, bos)


def evaluated(model, tokenizer, name, **protocol):
    task, spec = asked(name, **protocol)
    return task.evaluate(Context(model, tokenizer, MINI, batch_size=4), spec)


def test_templated_questions_are_lm_evals_own(tiny, chatty):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = tiny()
    task, spec = asked("arc_easy", limit=4, chat_template=True)
    found = evaluated(model, chatty, "arc_easy", limit=4, chat_template=True)
    with lm.quiet():
        (part,) = stock_parts(task, MINI, spec)
        own = HFLM(
            pretrained=model,
            tokenizer=prepared(chatty, model),
            batch_size=4,
            softmax_dtype="float32",
        )
        results = evaluate(
            own,
            {"tasks": {part.name: part.task}},
            log_samples=True,
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    expected = results["samples"][part.name]
    assert [row["prompt_hash"] for row in found.samples] == [row["prompt_hash"] for row in expected]
    for row, other in zip(found.samples, expected, strict=True):
        theirs = [answer[0] for answer in other["filtered_resps"]]
        assert row["loglikelihoods"] == pytest.approx(theirs, rel=2e-6, abs=2e-4)
    assert found.facts["chat_template"] and found.facts["brings_template"]
    assert found.facts["beginning"] == ["<"], "the first token of the template"
    plain = evaluated(model, chatty, "arc_easy", limit=4)
    assert plain.facts["chat_template"] is None and plain.facts["brings_template"]
    assert plain.samples[0]["prompt_hash"] != found.samples[0]["prompt_hash"]


def test_gold_answers_are_asked_in_the_template_too(tiny, chatty):
    task, spec = asked("gsm8k", limit=2, num_fewshot=1, generate=0, chat_template=True)
    model = tiny()
    with lm.quiet():
        (part,) = stock_parts(task, MINI, spec)
        own = lm.language_model(Context(model, chatty, MINI, batch_size=4), "t", True)
        prompts = [prompt for _, prompt in lm.prompts(part.task, own)]
    assert all(prompt.startswith("<user>") and prompt.endswith("<assistant>") for prompt in prompts)
    assert all(prompt.count("<assistant>") == 2 for prompt in prompts), "the example is a turn"
    outcome = task.evaluate(Context(model, chatty, MINI, batch_size=4), spec)
    assert len({row["prompt_hash"] for row in outcome.samples}) == 2


@pytest.mark.parametrize(("bos", "expected"), [(None, ["<s>"]), ("none", []), ("tokenizer", [])])
def test_what_stands_before_a_prompt_is_as_asked(tiny, tokenizer, bos, expected):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<s>"})
    model = tiny(vocab_size=300)
    outcome = evaluated(model, own, "arc_easy", limit=2, bos=bos)
    assert outcome.facts["beginning"] == expected
    assert outcome.facts["trained_bos"] == "<s>"


def test_answers_end_where_the_protocol_says(tiny, tokenizer):
    outcome = evaluated(
        tiny(), tokenizer, "gsm8k", limit=1, num_fewshot=0, generate=1, max_gen_toks=7
    )
    assert outcome.facts["max_gen_toks"] == 7 and outcome.facts["until"]
    written = [row for row in outcome.samples if row["filter"] != "none"]
    # A byte that is no text is written as a sign of three bytes.
    assert all(row["tokens"] <= 3 * 7 and "looping" in row for row in written)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1] * LOOP, True),
        ([9, 8, 7] + [1, 2] * LOOP, True),
        (list(range(10)) * 3, True),
        ([1] * (LOOP - 1), False),
        (list(range(200)), False),
        (list(range(30)) * 2, False),
        ([1, 2] * LOOP + [5], False),
        ([], False),
    ],
)
def test_a_repetition_at_the_end_is_seen(tokens, expected):
    assert loops(tokens) is expected


def test_the_mean_over_subjects_is_that_of_their_means(tiny, tokenizer):
    """Subjects of different sizes: one and the same number of items would show nothing."""
    rows = [
        {"subject": "a", "acc": 1.0},
        {"subject": "a", "acc": 0.0},
        {"subject": "b", "acc": 1.0},
    ]
    assert _weigh_subjects(rows) == {"a": 2, "b": 1}
    assert np.mean([row["acc_macro"] for row in rows]) == pytest.approx((0.5 + 1.0) / 2)
    outcome = evaluated(tiny(), tokenizer, "mmlu", limit=1)
    values = {s.metric: s.value for s in outcome.scores if s.task == "mini-mmlu"}
    assert values["acc_macro"] == pytest.approx(values["acc"]), "one item of each"
    assert len(outcome.facts["subjects"]) == 57
    assert all(s.metric != "acc_macro" for s in outcome.scores if s.task != "mini-mmlu")


def test_unlike_sizes_of_subjects_are_no_error_of_the_mean_over_them():
    """Forty subjects of 5 to 200 items, of which a candidate loses five points in each, or so."""
    generator = np.random.default_rng(0)
    sizes = np.concatenate([np.full(30, 5), np.full(10, 200)])
    subjects = np.repeat(np.arange(len(sizes)), sizes).tolist()
    shares = generator.normal(0.6, 0.1, len(sizes))
    rows, means = [], []
    for accuracies in (shares, shares - generator.normal(0.05, 0.01, len(sizes))):
        rows.append([{"subject": k, "acc": float(accuracies[k])} for k in subjects])
        means.append(accuracies)
        _weigh_subjects(rows[-1])
    found = [np.array([row["acc_macro"] for row in side]) for side in rows]
    own = mean_interval(found[0], subjects)
    assert own.value == pytest.approx(means[0].mean())
    assert own.stderr == pytest.approx(means[0].std(ddof=1) / math.sqrt(len(sizes)), rel=0.1)
    change, per_subject = mean_interval(found[1] - found[0], subjects), means[1] - means[0]
    assert change.value == pytest.approx(per_subject.mean())
    expected = per_subject.std(ddof=1) / math.sqrt(len(sizes))
    assert change.stderr == pytest.approx(expected, rel=0.1)
