"""The tasks whose real rows come in another layout: stock prompts, and values of a plain model."""

from __future__ import annotations

import math

import pytest
import torch

from qbench.errors import ConfigError, DataError
from qbench.tasks import lm
from qbench.tasks.contract import Context
from qbench.tasks.declaration import OtherLayout
from qbench.tasks.folder import FolderSource, _derived, write_parquet
from qbench.tasks.harness import stock_parts
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import get_task

# One row of each file in the other layout, what lm-eval asks of it, and the right choice.
PLAIN = {
    "piqa": {"query": "Question: Cool a drink\n", "choices": ["add ice", "boil it"], "gold": 0},
    "winogrande": {
        "context_options": ["Ann thanked Eve because Ann", "Ann thanked Eve because Eve"],
        "continuation": "had helped.",
        "gold": 1,
    },
    "boolq": {
        "query": "Passage: Q.\nQuestion: what? It is salty.\nQuestion: is the sea salty?",
        "choices": ["no", "yes"],
        "gold": 1,
    },
    "openbookqa": {"query": "Frogs eat", "choices": ["iron", "flies", "sand", "air"], "gold": 1},
    "copa": {
        "query": "It rained, therefore",
        "choices": ["it was dry.", "the street was wet."],
        "gold": 1,
    },
    "lambada_openai": {"context": "The king sat down on his", "continuation": "throne"},
}
ASKED = {
    "piqa": [
        ("Question: Cool a drink\nAnswer:", " add ice"),
        ("Question: Cool a drink\nAnswer:", " boil it"),
    ],
    "winogrande": [
        ("Ann thanked Eve because Ann", " had helped."),
        ("Ann thanked Eve because Eve", " had helped."),
    ],
    "boolq": [
        ("Q.\nQuestion: what? It is salty.\nQuestion: is the sea salty?\nAnswer:", " no"),
        ("Q.\nQuestion: what? It is salty.\nQuestion: is the sea salty?\nAnswer:", " yes"),
    ],
    "openbookqa": [("Frogs eat", f" {text}") for text in ("iron", "flies", "sand", "air")],
    "copa": [  # lm-eval's choices begin with a space, and so does what it puts between
        ("It rained therefore", "  it was dry."),
        ("It rained therefore", "  the street was wet."),
    ],
    "lambada_openai": [("The king sat down on his", " throne")],
}
SIZES = {
    "piqa": 1838,
    "winogrande": 1267,
    "boolq": 3270,
    "openbookqa": 500,
    "copa": 100,
    "lambada_openai": 5153,
}


def folder_of(name: str, tmp_path) -> FolderSource:
    other = get_task(name).table.other_layout
    (file,) = other.files.values()
    write_parquet([PLAIN[name]] * 2, tmp_path / other.folder / f"{file}.parquet")
    return FolderSource(tmp_path)


def requests_of(task, source, spec) -> list[tuple[str, str]]:
    """What lm-eval asks about the first item of a spec."""
    with lm.quiet():
        (part,) = stock_parts(task, source, spec)
        part.task.build_all_requests(limit=1)
    return [instance.args for instance in part.task.instances]


def plain_log_likelihood(model, tokenizer, prompt: str, answer: str) -> tuple[float, bool]:
    """ln p(answer | prompt) in float64, and whether every token of it was the most likely one."""
    start = len(tokenizer(prompt)["input_ids"])
    tokens = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
    with torch.no_grad():
        logits = model.double()(input_ids=tokens).logits[0, start - 1 : -1]
    model.float()
    targets = tokens[0, start:]
    logs = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(logs.sum()), bool((logits.argmax(-1) == targets).all())


def check_against_a_plain_model(name: str, source, model, tokenizer, limit: int) -> None:
    task = get_task(name)
    spec = task.spec(source, limit=limit)
    outcome = task.evaluate(Context(model, tokenizer, source, batch_size=2), spec)
    assert len(outcome.samples) == limit
    first = outcome.samples[0]
    expected = []
    greedy = []
    for prompt, answer in requests_of(task, source, spec):
        log, is_greedy = plain_log_likelihood(model, tokenizer, prompt, answer)
        expected.append(log)
        greedy.append(is_greedy)
    if task.kind == "loglikelihood":
        assert first["loglikelihood"] == pytest.approx(expected[0], rel=1e-4)
        assert first["acc"] == float(greedy[0])
        losses = [-row["loglikelihood"] for row in outcome.samples]
        (perplexity,) = [s for s in outcome.scores if s.metric == "perplexity"]
        assert perplexity.value == pytest.approx(math.exp(sum(losses) / limit), rel=1e-9)
        return
    assert first["loglikelihoods"] == pytest.approx(expected, rel=1e-4)
    assert first["acc"] == float(expected.index(max(expected)) == first["target"])
    log_sum = float(torch.tensor(expected, dtype=torch.float64).logsumexp(0))
    gold = expected[first["target"]] - log_sum
    assert first["gold_logprob"] == pytest.approx(gold, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_other_layout_is_asked_as_lm_eval_asks(name, tmp_path, tiny, tokenizer):
    source = folder_of(name, tmp_path)
    task = get_task(name)
    assert requests_of(task, source, task.spec(source, limit=1)) == ASKED[name]
    check_against_a_plain_model(name, source, tiny(), tokenizer, limit=2)
    outcome = task.evaluate(Context(tiny(), tokenizer, source), task.spec(source))
    if "gold" in PLAIN[name]:
        assert [row["target"] for row in outcome.samples] == [PLAIN[name]["gold"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_real_rows_give_the_values_of_a_plain_model(name, real_data, tiny, tokenizer):
    source = FolderSource(real_data)
    if not source.splits(name):
        pytest.skip(f"{real_data} has no {name}")
    task = get_task(name)
    assert len(source.rows(name, task.splits[-1])) == SIZES[name] == task.cost.items
    check_against_a_plain_model(name, source, tiny(), tokenizer, limit=3)


def test_the_first_layout_comes_before_the_other(tmp_path):
    source = folder_of("copa", tmp_path)
    of_other = source.sha256("copa")
    row = {
        "premise": "It snowed.",
        "question": "cause",
        "choice1": "It was cold.",
        "choice2": "It was hot.",
        "label": 0,
    }
    write_parquet([row], tmp_path / "copa" / "validation.parquet")
    assert source.rows("copa", "validation").to_list() == [row]
    assert source.sha256("copa") != of_other
    assert source.splits("copa") == ("validation",)


def test_expressions_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {"query": ["a", "b"]}

    def derive(expression: str):
        other = OtherLayout(folder="x", files={"test": "rows"}, columns={"goal": expression})
        return _derived(columns, other, path)

    assert derive("query ~ '.'") == {"goal": ["a.", "b."]}
    with pytest.raises(ConfigError, match=r"the expression 'query\[' of goal is no Jinja"):
        derive("query[")
    with pytest.raises(DataError, match=r"row 0: goal = goals cannot be worked out"):
        derive("goals")
    with pytest.raises(DataError, match=r"row 0: goal = goals\[0\] cannot be worked out"):
        derive("goals[0]")


def test_the_embedded_data_says_that_it_lacks_a_table():
    mini = MiniSource()
    assert mini.splits("piqa") == ()
    with pytest.raises(DataError, match="the mini data has no piqa, only gsm8k, .* use --data DIR"):
        get_task("piqa").spec(mini)
