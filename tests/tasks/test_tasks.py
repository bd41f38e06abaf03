"""Scores against plain re-computations on a tiny model; prompts against the published ones."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from places import REAL_DATA, needs_real_data
from qbench.calibration.windows import calibration_windows, windows
from qbench.errors import ConfigError, DataError, MethodError, ModelError, StoreError
from qbench.tasks import lm, registry
from qbench.tasks.article_windows import article_windows
from qbench.tasks.beginnings import with_bos
from qbench.tasks.contract import Context, Outcome, Task
from qbench.tasks.declaration import Cost
from qbench.tasks.folder import FolderSource, write_parquet
from qbench.tasks.harness import chosen_rows, read_task, stock_parts
from qbench.tasks.mini_source import EMBEDDED, MiniSource
from qbench.tasks.reference import (
    LOWEST,
    POSITIONS,
    TOGETHER,
    ReferenceLogits,
    divergence,
    divergences,
    reference_key,
    window_logits,
)
from qbench.tasks.registry import all_tasks, broken_tasks, get_task
from qbench.tasks.scores import mean_score

MINI = MiniSource()
LENGTH = 64


@pytest.fixture(scope="module")
def model(tiny):
    return tiny()


def evaluate(task: str, model, tokenizer, *, reference=None, source=MINI, **protocol) -> Outcome:
    judge = get_task(task)
    spec = judge.spec(source, **protocol)
    context = Context(model, tokenizer, source, batch_size=4)
    if reference is not None:
        context.cache[reference_key(spec)] = reference
    outcome = judge.evaluate(context, spec)
    json.dumps(outcome.samples, allow_nan=False)
    return outcome


def score(outcome: Outcome, metric: str, filter: str = "none", task: str | None = None):
    (found,) = [
        s
        for s in outcome.scores
        if s.metric == metric and s.filter == filter and task in (None, s.task)
    ]
    return found


def stderr(values) -> float:
    return float(np.std(np.asarray(values), ddof=1) / math.sqrt(len(values)))


# --- text


def test_windows_are_the_joined_text_without_its_tail(tokenizer):
    found = windows(["ab", "cde"], tokenizer, 3)
    assert found.shape == (2, 3)
    assert tokenizer.decode(found.flatten()) == "ab\n\ncd"
    assert windows(["ab", "cde"], tokenizer, 3, limit=1).tolist() == found[:1].tolist()


def test_too_little_text(tokenizer):
    with pytest.raises(DataError, match="the text has 5 tokens and one window needs 64"):
        windows(["abcde"], tokenizer, 64)
    with pytest.raises(DataError, match="the text is empty"):
        windows([" ", ""], tokenizer, 64)
    with pytest.raises(ConfigError, match="length=1 is too small; give 2 or more"):
        windows(["abcde"], tokenizer, 1)


def test_calibration_windows_are_drawn_once_each_in_order(tokenizer):
    text = [f"{index:04d}" for index in range(100)]
    found = calibration_windows(text, tokenizer, 20, 6, seed=3)
    starts = [int(tokenizer.decode(row)[:4]) for row in found]
    assert starts == sorted(set(starts)) and len(starts) == 20
    assert torch.equal(found, calibration_windows(text, tokenizer, 20, 6, seed=3))
    assert not torch.equal(found, calibration_windows(text, tokenizer, 20, 6, seed=4))
    assert calibration_windows(text, tokenizer, 99, 6, seed=3).shape == (99, 6)


def test_too_little_calibration_text(tokenizer):
    with pytest.raises(DataError, match="has 10 tokens, 2 windows of length 4; 3 are asked"):
        calibration_windows(["0123456789"], tokenizer, 3, 4, seed=0)
    with pytest.raises(DataError, match="the text is empty"):
        calibration_windows([], tokenizer, 1, 4, seed=0)


SPREAD = {"limit": 5, "length": LENGTH, "spread": 1}  # of five articles, so five clusters


def spread_windows(tokenizer) -> torch.Tensor:
    spec = get_task("wikitext").spec(MINI, **SPREAD)
    return article_windows(MINI.text("wikitext"), tokenizer, spec).tokens


def test_perplexity_is_that_of_a_plain_fp64_computation(model, tokenizer):
    outcome = evaluate("wikitext", model, tokenizer, **SPREAD)
    inputs = spread_windows(tokenizer)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=inputs).logits[:, :-1]
    nll = (
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), inputs[:, 1:], reduction="none")
        .mean(1)
        .numpy()
    )
    found = score(outcome, "perplexity", task="mini-text")
    assert found.value == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert found.stderr == pytest.approx(math.exp(nll.mean()) * stderr(nll), rel=1e-4)
    assert (found.n, found.higher_is_better) == (5, False)
    assert score(outcome, "nll").value == pytest.approx(nll.mean(), rel=1e-5)
    assert [row["nll"] for row in outcome.samples] == pytest.approx(nll, rel=1e-5)


@pytest.fixture
def reference(model, tokenizer, tmp_path):
    seen: list[float] = []
    inputs = spread_windows(tokenizer)
    found = ReferenceLogits.write(
        model,
        inputs,
        tmp_path / "reference.npy",
        lambda fraction, _: seen.append(fraction),
        batch_size=2,
    )
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["reference.facts.json", "reference.npy"]
    return found


def test_a_model_does_not_diverge_from_itself(model, tokenizer, reference):
    outcome = evaluate("divergence", model, tokenizer, reference=reference, **SPREAD)
    assert abs(score(outcome, "kl_mean", task="mini-divergence").value) < 1e-5
    assert abs(score(outcome, "kl_p99").value) < 1e-5
    assert score(outcome, "top1_agreement").value == 1.0


def test_divergence_is_that_of_a_plain_computation(model, tokenizer, reference, monkeypatch):
    monkeypatch.setitem(POSITIONS, "cpu", 10)  # windows in uneven parts
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight += 0.05
    outcome = evaluate("divergence", other, tokenizer, reference=reference, **SPREAD)
    inputs = spread_windows(tokenizer)
    with torch.no_grad():
        p, q = (
            copy.deepcopy(m).double()(input_ids=inputs).logits[:, :-1].log_softmax(-1)
            for m in (model, other)
        )
    kl = (p.exp() * (p - q)).sum(-1)
    rounded = p.half()  # as the reference is kept, so that two tokens may be the likeliest
    agree = rounded.gather(-1, q.argmax(-1, keepdim=True))[..., 0] >= rounded.amax(-1)
    agree = agree.double().mean(1)
    assert kl.mean() > 1e-3
    assert score(outcome, "kl_mean").value == pytest.approx(float(kl.mean()), rel=1e-3)
    assert score(outcome, "kl_mean").stderr == pytest.approx(stderr(kl.mean(1)), rel=1e-3)
    for metric, share in (("kl_median", 0.5), ("kl_p99", 0.99)):
        expected = float(kl.flatten().quantile(share))
        assert score(outcome, metric).value == pytest.approx(expected, rel=2e-3)
    reverse = (q.exp() * (q - p)).sum(-1)
    assert abs(float(reverse.mean() / kl.mean()) - 1) > 1e-3, "the two ways are two numbers"
    assert score(outcome, "kl_reverse").value == pytest.approx(float(reverse.mean()), rel=1e-3)
    assert score(outcome, "kl_reverse").stderr == pytest.approx(stderr(reverse.mean(1)), rel=1e-3)
    assert (score(outcome, "kl_p99").stderr, score(outcome, "kl_p99").n) == (None, 5 * (LENGTH - 1))
    assert score(outcome, "top1_agreement").value == pytest.approx(float(agree.mean()), abs=1e-6)


def test_a_divergence_stands_beside_what_rounding_makes(model, tokenizer, reference):
    outcome = evaluate("divergence", model, tokenizer, reference=reference, **SPREAD)
    noise = score(outcome, "kl_noise")
    assert (noise.n, noise.higher_is_better) == (4, False)
    assert 0 < abs(noise.value) < 1e-5, "float32, and products of other shapes"
    reference.path.with_suffix(".facts.json").write_text("[1,")
    with pytest.raises(StoreError, match=r"facts\.json cannot be read"):
        ReferenceLogits.open(reference.path)


def test_a_reference_of_other_tokens_is_refused(model, tokenizer, tmp_path):
    path = tmp_path / "reference.npy"
    others = ReferenceLogits.write(model, spread_windows(tokenizer).flip(1), path)
    with pytest.raises(StoreError, match="is of other tokens than the model reads"):
        evaluate("divergence", model, tokenizer, reference=others, **SPREAD)


def test_a_small_divergence_is_right_in_float32():
    """With a large vocabulary the sum in a log-softmax of float32 is off by more than such a KL."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 49152, generator=draw) * 3 + 10
    other = logits + 0.003 * torch.randn(16, 49152, generator=draw)
    p = logits.log_softmax(-1).half()
    exact = divergence(p.double(), other.double().log_softmax(-1))
    assert 1e-6 < exact.mean() < 1e-5
    found = divergence(p.float(), other.log_softmax(-1))
    assert float((found - exact).abs().max()) < 3e-7


def test_a_token_of_no_probability_counts_nothing():
    """As a model gives to words that its vocabulary is filled up with."""
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.5, 0.0]]).log().clamp(min=LOWEST)
    q = torch.tensor([[0.25, 0.75, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    forward, backward = divergences(p, q)
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.5 * math.log(2)]
    assert forward.tolist() == pytest.approx(expected, rel=1e-6)
    assert float(backward[0]) == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6
    )
    lost = torch.tensor([[1.0, 0.0]]).log()
    assert divergences(torch.tensor([[0.5, 0.5]]).log(), lost)[0].item() == math.inf


def test_short_windows_are_taken_together(model, tokenizer, monkeypatch):
    inputs = spread_windows(tokenizer)
    shapes = []
    handle = model.register_forward_hook(lambda _module, _args, out: shapes.append(out[0].shape[0]))
    found = {}
    for together in (0, 3 * LENGTH + 1, 10_000):
        monkeypatch.setitem(TOGETHER, "cpu", together)
        found[together] = torch.stack([logits for _, logits in window_logits(model, inputs, 1)])
    handle.remove()
    assert shapes == [1, 1, 1, 1, 1, 3, 2, 5]
    for logits in found.values():
        torch.testing.assert_close(logits, found[0], rtol=1e-4, atol=1e-5)


def test_both_text_tasks_share_one_pass(model, tokenizer, reference, monkeypatch):
    monkeypatch.setitem(TOGETHER, "cpu", 0)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    context = Context(model, tokenizer, MINI, batch_size=2)
    for name in ("wikitext", "divergence"):
        task = get_task(name)
        spec = task.spec(MINI, **SPREAD)
        context.cache[reference_key(spec)] = reference
        task.evaluate(context, spec)
    handle.remove()
    assert len(calls) == 3


def test_a_text_that_is_joined_otherwise_has_a_pass_of_its_own(model, tokenizer, tmp_path):
    plain = get_task("wikitext")
    joined = plain.model_copy(update={"name": "joined", "table": "wikitext", "between": " "})
    spec = plain.spec(MINI, limit=2, length=LENGTH)
    source = SimpleNamespace(text=lambda name: ["some words of a text"] * 20)
    cut = article_windows(source.text("wikitext"), tokenizer, spec)
    of_plain = ReferenceLogits.write(model, cut.tokens, tmp_path / "reference.npy")
    alone = {}
    for task in (plain, joined):
        alone[task.name] = task.evaluate(Context(model, tokenizer, source), spec).samples
    context = Context(model, tokenizer, source)
    context.cache[reference_key(spec)] = of_plain
    for task in (plain, joined):
        assert task.evaluate(context, spec).samples == alone[task.name]
    assert alone["wikitext"] != alone["joined"]


def test_divergence_needs_a_reference_that_fits(model, tokenizer, reference, tmp_path):
    with pytest.raises(
        ConfigError, match="mini-divergence needs the log-probabilities of the unquantized model"
    ):
        evaluate("divergence", model, tokenizer, limit=5, length=LENGTH)
    with pytest.raises(
        StoreError, match=r"holds .* \(5, 63, 259\) and the model gives \(3, 63, 259\)"
    ):
        evaluate("divergence", model, tokenizer, reference=reference, **SPREAD | {"limit": 3})
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(StoreError, match="cannot be read as reference log-probabilities"):
        ReferenceLogits.open(tmp_path / "text.npy")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(StoreError, match=r"is float64 of shape \(3,\), not 3-d float16"):
        ReferenceLogits.open(tmp_path / "flat.npy")


def test_a_reference_that_does_not_fit_the_disk(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        StoreError, match=r"the reference log-probabilities need 0\.0 GB and .* GB free"
    ):
        ReferenceLogits.write(
            model, windows(MINI.text("wikitext"), tokenizer, LENGTH, 2), tmp_path / "r.npy"
        )
    assert not list(tmp_path.iterdir())


def test_windows_longer_than_the_models_context(tokenizer, tiny):
    with pytest.raises(
        ConfigError,
        match="length=64 is more than the model's context of 32 tokens; choose at most 32",
    ):
        evaluate("wikitext", tiny(max_position_embeddings=32), tokenizer, limit=2, length=64)


def test_a_model_that_gives_nan_fails_as_a_method(tokenizer, tiny):
    broken = tiny()
    broken.lm_head.weight.data[:] = float("nan")
    with pytest.raises(
        MethodError,
        match="mini-text: nll is not finite on 2 of 2 items; the quantized model gives NaN",
    ):
        evaluate("wikitext", broken, tokenizer, limit=2, length=LENGTH)


@pytest.mark.parametrize("name", ["arc_easy", "gsm8k"])
@pytest.mark.parametrize("companion", ["declared", None])
def test_nan_is_no_wrong_answer_whatever_a_task_declares(name, companion, tokenizer, tiny):
    task = get_task(name)
    if companion is None:
        of_task = [score for score in task.scores if not score.metric.startswith("gold")]
        task = task.model_copy(update={"companion": None, "scores": of_task})
    sound, broken = tiny(), tiny()
    broken.lm_head.weight.data[7] = float("nan")
    spec = task.spec(MINI, limit=2, num_fewshot=0, generate=1)
    spec = spec.model_copy(update={"max_gen_toks": 4} if name == "gsm8k" else {})
    assert task.evaluate(Context(sound, tokenizer, MINI), spec).scores
    with pytest.raises(MethodError, match="is not finite on .* the quantized model gives NaN"):
        task.evaluate(Context(broken, tokenizer, MINI), spec)


def test_text_protocol_defaults():
    spec = get_task("wikitext").spec(MINI, num_fewshot=5, generate=3)
    assert (spec.length, spec.num_fewshot, spec.generate, spec.limit) == (2048, None, None, None)
    with pytest.raises(ConfigError, match="limit=0 is too small; give 1 or more"):
        get_task("wikitext").spec(MINI, limit=0)


# --- lm-eval


def test_multiple_choice_scores_follow_from_the_logged_likelihoods(model, tokenizer):
    outcome = evaluate("arc_easy", model, tokenizer, limit=12)
    rows = MINI.rows("arc_easy", "test")
    gold, right = [], []
    for row in outcome.samples:
        item = rows[row["doc_id"]]
        assert row["target"] == item["choices"]["label"].index(item["answerKey"])
        logs = np.array(row["loglikelihoods"])
        assert len(logs) == len(item["choices"]["text"])
        gold.append(math.log(math.exp(logs[row["target"]]) / sum(math.exp(x) for x in logs)))
        right.append(float(logs.argmax() == row["target"]))
        assert row["acc"] == right[-1]
    for metric, values in (("gold_logprob", gold), ("acc", right)):
        found = score(outcome, metric, task="mini-arc_easy")
        assert found.value == pytest.approx(np.mean(values), rel=1e-9)
        assert found.stderr == pytest.approx(stderr(values), rel=1e-9)
        assert (found.n, found.higher_is_better) == (12, True)
    assert {s.metric for s in outcome.scores} == {"acc", "acc_norm", "gold_logprob"}


@torch.no_grad()
def test_a_model_that_tells_no_choice_from_another_is_suspected(tokenizer, tiny):
    """As where a tokenizer ends every text, and the likelihood asked for is that of nothing."""
    model = tiny().eval()
    model.lm_head.weight.zero_()
    outcome = evaluate("mmlu", model, tokenizer, limit=1, num_fewshot=0)
    accuracy = score(outcome, "acc", task="mini-mmlu")
    assert accuracy.suspicion == "all choices are equally likely, on every item"


def test_a_measure_that_is_the_same_everywhere_is_suspected():
    def suspicion(values):
        return mean_score("task", "nll", values, higher=False).suspicion

    assert suspicion([2.5] * 7) == "the same value on all 7 items"
    assert suspicion([2.5, 2.5001]) is None
    assert suspicion([0.0] * 7) is None, "no item right, or no divergence, may well be"
    assert suspicion([1.0] * 7) is None
    assert suspicion([2.5]) is None


def test_choice_likelihoods_are_those_of_the_model(model, tokenizer):
    row = evaluate("arc_easy", model, tokenizer, limit=1).samples[0]
    item = MINI.rows("arc_easy", "test")[row["doc_id"]]
    prompt = f"Question: {item['question']}\nAnswer:"
    for choice, found in zip(item["choices"]["text"], row["loglikelihoods"], strict=True):
        assert found == pytest.approx(
            -plain_nll(model, tokenizer, prompt, f" {choice}")[0], rel=1e-4
        )


def plain_nll(model, tokenizer, prompt: str, answer: str) -> tuple[float, int]:
    tokens = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logs = copy.deepcopy(model).double()(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    found = logs.gather(1, tokens[0, 1:, None])[start - 1 :, 0]
    return float(-found.sum()), len(found)


def test_a_limit_chooses_the_same_scattered_items_every_time():
    assert chosen_rows(5, None, shuffled=True) == (0, 1, 2, 3, 4)
    assert chosen_rows(5, 9, shuffled=True) == (0, 1, 2, 3, 4)
    assert chosen_rows(100, 3, shuffled=False) == (0, 1, 2)
    few, more = chosen_rows(100, 8, shuffled=True), chosen_rows(100, 20, shuffled=True)
    assert few == chosen_rows(100, 8, shuffled=True) != tuple(range(8))
    assert set(few) < set(more) and list(few) == sorted(few)


def test_mmlu_counts_the_limit_per_subject_and_scores_categories(model, tokenizer):
    outcome = evaluate("mmlu", model, tokenizer, limit=1)
    subjects = [row["subject"] for row in outcome.samples]
    assert len(subjects) == len(set(subjects)) == 57
    assert score(outcome, "acc", task="mini-mmlu").n == 57
    parts = {s.task: s for s in outcome.scores if s.metric == "gold_logprob"}
    assert set(parts) == {"mini-mmlu"} | {
        f"mini-mmlu_{x}" for x in ("stem", "humanities", "social_sciences", "other")
    }
    total = parts.pop("mini-mmlu")
    assert sum(part.n for part in parts.values()) == 57
    assert total.value == pytest.approx(sum(part.value * part.n for part in parts.values()) / 57)


def test_gsm8k_gold_nll_is_that_of_a_plain_computation(model, tokenizer):
    outcome = evaluate("gsm8k", model, tokenizer, limit=3, num_fewshot=1, generate=0)
    items = lm.prompts(part_of("gsm8k", limit=3, num_fewshot=1).task)
    nll = []
    for (doc, prompt), row in zip(items, outcome.samples, strict=True):
        total, tokens = plain_nll(model, tokenizer, prompt, f" {doc['answer']}")
        assert row["tokens"] == tokens
        nll.append(total / tokens)
    found = score(outcome, "gold_nll", task="mini-gsm8k")
    assert found.value == pytest.approx(np.mean(nll), rel=1e-5)
    assert found.stderr == pytest.approx(stderr(nll), rel=1e-3)
    assert (found.n, found.higher_is_better) == (3, False)
    assert len(outcome.scores) == 1


def test_gsm8k_both_filters(model, tokenizer, monkeypatch):
    gold = [row["answer"].split("#### ")[1] for row in MINI.rows("gsm8k", "test").select(range(3))]
    written = [f" so it is\n#### {gold[0]}", f" the answer is {gold[1]}.", " I do not know."]
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", lambda *_, **__: written)
    outcome = evaluate("gsm8k", model, tokenizer, limit=4, num_fewshot=0, generate=3)
    assert score(outcome, "exact_match", "strict-match").value == pytest.approx(1 / 3)
    assert score(outcome, "exact_match", "flexible-extract").value == pytest.approx(2 / 3)
    assert score(outcome, "exact_match", "flexible-extract").stderr == pytest.approx(
        stderr([1, 1, 0])
    )
    assert (score(outcome, "exact_match", "strict-match").n, score(outcome, "gold_nll").n) == (3, 4)
    answers = [row for row in outcome.samples if row["filter"] == "strict-match"]
    assert [row["responses"] for row in answers] == [[[text]] for text in written]
    asked = [row["prompt_hash"] for row in outcome.samples if row["filter"] == "none"]
    assert [row["prompt_hash"] for row in answers] == asked[:3]


def test_gsm8k_generates_with_the_same_prompts_as_it_scores(model, tokenizer, capfd):
    fractions: list[float] = []
    before = trace(model, tokenizer)
    task = get_task("gsm8k")
    context = Context(
        model,
        tokenizer,
        MINI,
        batch_size=4,
        progress=lambda fraction, _: fractions.append(fraction),
    )
    outcome = task.evaluate(context, task.spec(MINI, limit=2, num_fewshot=1, generate=1))
    hashes = {
        name: [row["prompt_hash"] for row in outcome.samples if row["filter"] == name]
        for name in FILTERS
    }
    assert hashes["strict-match"] == hashes["flexible-extract"] == hashes["none"][:1]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert trace(model, tokenizer) == before
    assert capfd.readouterr() == ("", "")


FILTERS = ("none", "strict-match", "flexible-extract")


def trace(model, tokenizer) -> tuple[object, ...]:
    """What an evaluation must leave as it was."""
    drawn = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    return *drawn, model.training, tokenizer.padding_side, tokenizer.pad_token, model.dtype


def test_evaluation_leaves_no_trace(model, tokenizer, capfd):
    before = trace(model, tokenizer)
    evaluate("arc_challenge", model, tokenizer, limit=2)
    assert trace(model, tokenizer) == before
    assert capfd.readouterr() == ("", "")


def test_prompts_that_do_not_fit_are_told(tokenizer, tiny):
    small = tiny(max_position_embeddings=64)
    with pytest.warns(
        UserWarning,
        match=r"mini-arc_easy: \d prompts were longer than the model's context of 64 tokens",
    ):
        evaluate("arc_easy", small, tokenizer, limit=2)


def part_of(name: str, source=MINI, index: int = 0, **protocol):
    task = get_task(name)
    with lm.quiet():
        return stock_parts(task, source, task.spec(source, **protocol))[index]


def requests_of(part) -> list[tuple[str, str]]:
    with warnings.catch_warnings(), lm.quiet():
        part.task.build_all_requests(limit=1)
    return [instance.args for instance in part.task.instances]


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_prompt_is_the_stock_one(name):
    part = part_of(name, limit=1)
    item = MINI.rows(name, "test")[part.rows[0]]
    expected = [
        (f"Question: {item['question']}\nAnswer:", f" {choice}")
        for choice in item["choices"]["text"]
    ]
    assert requests_of(part) == expected


def test_mmlu_prompt_is_the_stock_one():
    part = part_of("mmlu", limit=1)
    assert (part.subject, part.category) == ("abstract_algebra", "mmlu_stem")
    item = of_subject(MINI.rows("mmlu", "test"), part.subject)[0]
    expected = (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        + asked(item)
    )
    assert requests_of(part) == [(expected, f" {letter}") for letter in "ABCD"]


def of_subject(rows, subject: str):
    return rows.select(
        [index for index, value in enumerate(rows["subject"][:]) if value == subject]
    )


def asked(item) -> str:
    choices = "".join(
        f"{letter}. {choice}\n" for letter, choice in zip("ABCD", item["choices"], strict=True)
    )
    return f"{item['question'].strip()}\n{choices}Answer:"


def test_gsm8k_prompt_is_the_stock_one():
    ((doc, prompt),) = lm.prompts(part_of("gsm8k", limit=1).task)
    assert doc == MINI.rows("gsm8k", "test")[0]
    *shots, last = prompt.split("Question: ")[1:]
    assert last == f"{doc['question']}\nAnswer:"
    known = {
        f"{row['question']}\nAnswer: {row['answer']}\n\n" for row in MINI.rows("gsm8k", "train")
    }
    assert len(shots) == 5 and set(shots) <= known


@needs_real_data
def test_real_mmlu_takes_the_first_five_development_questions():
    source = FolderSource(REAL_DATA)
    part = part_of("mmlu", source, index=1, limit=1)
    assert part.subject == "anatomy"
    dev = of_subject(source.rows("mmlu", "dev"), "anatomy")
    shots = "".join(f"{asked(item)} {'ABCD'[item['answer']]}\n\n" for item in dev)
    item = of_subject(source.rows("mmlu", "test"), "anatomy")[0]
    head = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    assert requests_of(part)[0] == (head + shots + asked(item), " A")


@needs_real_data
@pytest.mark.parametrize("name", ["arc_easy", "gsm8k"])
def test_real_data_run(name, model, tokenizer):
    outcome = evaluate(
        name, model, tokenizer, source=FolderSource(REAL_DATA), limit=3, num_fewshot=0, generate=0
    )
    assert {s.task for s in outcome.scores} == {name} and all(s.n == 3 for s in outcome.scores)


def test_shots_that_the_data_cannot_give():
    assert get_task("mmlu").spec(MINI).num_fewshot == 0
    assert get_task("gsm8k").spec(MINI).num_fewshot == 5
    with pytest.raises(
        ConfigError,
        match="num_fewshot=5: mini has no dev split of mmlu to take examples from; use 0",
    ):
        get_task("mmlu").spec(MINI, num_fewshot=5)
    with pytest.raises(ConfigError, match="num_fewshot=-1 is too small; give 0 or more"):
        get_task("gsm8k").spec(MINI, num_fewshot=-1)


def test_a_subject_that_has_too_few_examples_is_named(tmp_path):
    row = {"question": "?", "choices": ["1", "2", "3", "4"], "answer": 0}
    for split, subjects in (("dev", ["anatomy"]), ("test", ["anatomy", "virology"])):
        rows = [row | {"subject": subject} for subject in subjects]
        write_parquet(rows, tmp_path / "mmlu" / f"{split}.parquet")
    task, source = get_task("mmlu"), FolderSource(tmp_path)
    with pytest.raises(
        DataError,
        match="has 0 rows of the subject 'virology' in its dev split, and 1 are asked as examples",
    ):
        stock_parts(task, source, task.spec(source, num_fewshot=1))
    assert len(stock_parts(task, source, task.spec(source, num_fewshot=0))) == 2


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([1] * 9, ConfigError, "mine has answers of 9 tokens, and the model a context of 8; leave"),
        ([], ModelError, r"mine: the tokenizer \(.*\) merges answer 1, ' b' behind 'a', into the"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused_before_anything_runs(
    answer, error, message, tokenizer, tiny
):
    model = tiny(max_position_embeddings=8)
    model.register_forward_hook(lambda *_: pytest.fail("the model runs"))
    asked = lm.language_model(Context(model, tokenizer, MINI), "mine")
    requests = [(("a", " a"), [5], [6]), (("a", " b"), [5], answer)]
    with pytest.raises(error, match=message):
        asked._loglikelihood_tokens(requests)


def test_a_folder_without_the_questions(tmp_path):
    write_parquet([{"question": "?", "answer": "#### 1"}], tmp_path / "gsm8k" / "train.parquet")
    task, source = get_task("gsm8k"), FolderSource(tmp_path)
    with pytest.raises(DataError, match=r"gsm8k.test\.parquet is missing: expected a parquet file"):
        stock_parts(task, source, task.spec(source))


# --- BOS, batches, scores


@pytest.mark.parametrize(
    ("model_type", "asks", "expected"),
    [
        ("llama", False, True),
        ("gemma3_text", False, True),
        ("qwen3", False, False),
        ("qwen3", True, True),
    ],
)
def test_bos_where_the_family_wants_it(tokenizer, model_type, asks, expected):
    given = copy.deepcopy(tokenizer)
    given.add_special_tokens({"bos_token": "<s>"})
    given._add_bos_token = asks
    if asks and not getattr(given, "add_bos_token", False):
        pytest.skip("this version of transformers has no such switch on a plain fast tokenizer")
    own = with_bos(given, model_type)
    assert (
        own("ab")["input_ids"]
        == ([own.bos_token_id] if expected else []) + tokenizer("ab")["input_ids"]
    )
    assert given("ab")["input_ids"] == tokenizer("ab")["input_ids"]
    assert with_bos(own, model_type)("ab") == own("ab")


def test_bos_is_not_forced_on_other_tokens_or_against_the_tokenizers_word(tokenizer):
    assert with_bos(tokenizer, "llama")("ab") == tokenizer("ab")
    given = copy.deepcopy(tokenizer)
    given.add_special_tokens({"bos_token": "<s>"})
    given.init_kwargs["add_bos_token"] = False
    assert with_bos(given, "llama")("ab") == tokenizer("ab")


def test_batches_shrink_where_logits_would_not_fit(monkeypatch):
    monkeypatch.setattr(lm, "LOGIT_BYTES", 10 * 100 * 64)
    assert lm.batches([4, 8, 20, 64, 1000], 8, vocabulary=100) == [
        (1, [3, 4]),
        (2, [2]),
        (8, [0, 1]),
    ]


def test_mean_score_of_one_item_has_no_standard_error():
    assert mean_score("t", "m", [0.5], higher=True).stderr is None


# --- registry


def test_every_registered_task_keeps_the_contract():
    assert set(all_tasks()) >= {
        "arc_challenge",
        "arc_easy",
        "divergence",
        "gsm8k",
        "mmlu",
        "wikitext",
    }
    for name, task in all_tasks().items():
        assert isinstance(task, Task) and task.name == name
        assert "\n" not in task.describe()
        assert task.kind in ("multiple_choice", "generation", "loglikelihood", "text")
        if task.table_name in EMBEDDED:
            spec = task.spec(MINI, limit=3)
            assert spec.limit == 3 and spec.name.startswith("mini-") and spec.sha256


def test_unknown_task():
    with pytest.raises(
        ConfigError,
        match=r"unknown task 'arc_esay'. Did you mean 'arc_easy'\? Available: arc_chall",
    ):
        get_task("arc_esay")


def test_plugins_load_or_say_why_not(monkeypatch):
    def fail():
        raise ImportError("no such module")

    facts = {"table": "wikitext", "cost": Cost(items=1), "scores": (), "order": 1000}
    facts |= {"has_subjects": False, "batch_size": None, "needs_unquantized": False}
    mine = SimpleNamespace(
        name="mine", kind="text", describe=str, spec=str, prepare=str, evaluate=str, **facts
    )
    mute = SimpleNamespace(**vars(mine) | {"name": "mute", "describe": fail})
    points = [
        SimpleNamespace(name="mine", value="a:b", load=lambda: mine),
        SimpleNamespace(name="lost", value="a:c", load=fail),
        SimpleNamespace(name="odd", value="a:d", load=lambda: 3),
        SimpleNamespace(name="kind", value="a:Kind", load=lambda: type("Kind", (), vars(mine))),
        SimpleNamespace(name="mute", value="a:f", load=lambda: mute),
        SimpleNamespace(name="double", value="a:e", load=lambda: get_task_again),
    ]
    get_task_again = get_task("mmlu")
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._installed.cache_clear()
    try:
        assert get_task("mine") is mine
        assert set(broken_tasks()) == {"lost", "odd", "kind", "mute", "double"}
        with pytest.raises(
            ConfigError, match="task 'lost' cannot be used: ImportError: no such module"
        ):
            get_task("lost")
        assert "it needs name, kind, describe, spec and evaluate" in broken_tasks()["odd"]
        assert broken_tasks()["kind"] == "TypeError: a:Kind is a class; give an object of it"
        assert "the name 'mmlu' is taken" in broken_tasks()["double"]
    finally:
        registry._installed.cache_clear()


def test_yaml_mistakes_name_the_file_and_the_key(tmp_path):
    good = (Path(registry.__file__).parent / "arc_easy.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(good + "shots: 3\n")
    with pytest.raises(
        ConfigError,
        match=r"mine\.yaml does not describe a task: shots: Extra inputs .* Its keys are",
    ):
        read_task(path)
    for text in ("a: [", "[" * 10_000, "a: 2024-99-99"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"mine\.yaml is not readable YAML"):
            read_task(path)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"mine\.yaml does not describe a task: file: "):
        read_task(path)


def test_a_task_that_lm_eval_does_not_have(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        (Path(registry.__file__).parent / "arc_easy.yaml")
        .read_text()
        .replace("harness: arc_easy", "harness: arc")
    )
    task = read_task(path)
    with pytest.raises(
        ConfigError, match=r"there is no 'arc' in lm-eval's folder 'arc'; it has arc_challenge, "
    ):
        stock_parts(task, MINI, task.spec(MINI))
