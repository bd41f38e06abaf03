"""What an endpoint answers: read where it is what was asked for, and refused in a sentence."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

import qbench
from completions_server import completions_server
from qbench import Scheme
from qbench.errors import ConfigError
from qbench.tasks.completions import require_likelihoods, require_texts
from qbench.tasks.contract import Context
from qbench.tasks.engines import Engine
from qbench.tasks.lm import language_model
from qbench.tasks.mini_source import MiniSource

LENGTH = 12
WINDOW = list(range(40, 40 + LENGTH))
NAMES = ("token_logprobs", "top_logprobs")


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory):
    quantized = qbench.quantize(tiny(hidden_size=64), "rtn", Scheme(3, 32))
    quantized.tokenizer = tokenizer
    return quantized.save(tmp_path_factory.mktemp("completions") / "tiny")


@pytest.fixture(scope="module")
def served(folder):
    return qbench.load(folder, "float32", packed=False)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, of which none takes its time."""
    made = []
    monkeypatch.setattr("qbench.tasks.endpoint_model.time.sleep", made.append)
    return made


def engine_of(folder, served, address):
    return Engine(folder, address, served.model.config, served.tokenizer, "float32")


def likelihoods(folder, served, **server):
    """ln p of two windows by a server."""
    with completions_server(served.model, served.tokenizer, **server) as address:
        engine = engine_of(folder, served, address)
        context = Context(engine, served.tokenizer, MiniSource())
        return engine.likelihoods(context, "windows", [WINDOW, WINDOW[::-1]])


def written(folder, served, **server):
    """What a server writes behind a prompt."""
    from lm_eval.api.instance import Instance

    with completions_server(served.model, served.tokenizer, **server) as address:
        engine = engine_of(folder, served, address)
        lm = language_model(Context(engine, served.tokenizer, MiniSource()), "texts")
        arguments = ("1 + 1 =", {"until": ["\n"], "max_gen_toks": 4})
        return lm.generate_until([Instance("generate_until", {}, arguments, 0)])


def of_logprobs(make):
    """A change of a choice: `make` of each list of its logprobs."""

    def change(choice):
        return choice | {"logprobs": {name: make(choice["logprobs"][name]) for name in NAMES}}

    return change


def of_logs(make):
    """A change of a choice: `make` of each log-probability but the first, which is none."""

    def change(choice):
        logs = [None, *map(make, choice["logprobs"]["token_logprobs"][1:])]
        return choice | {"logprobs": choice["logprobs"] | {"token_logprobs": logs}}

    return change


def with_top(top):
    return lambda choice: choice | {"logprobs": choice["logprobs"] | {"top_logprobs": top}}


def with_tokens(tokens):
    return lambda choice: choice | {"logprobs": choice["logprobs"] | {"tokens": tokens}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_logprobs(lambda entries: entries[-1:]), "it gives 1 token_logprobs for a prompt of 12"),
        (of_logprobs(lambda entries: []), "it gives 0 token_logprobs"),
        (of_logprobs(lambda entries: entries[:-1]), "it gives 12 .* 13 are wanted"),
        (of_logprobs(lambda entries: entries[:6]), "it gives 6 "),
        (of_logprobs(lambda entries: [None, *entries[-5:]]), "it gives 6 "),
        (of_logs(lambda log: log + 20), "the log-probability of token 1 is .* finite"),
        (of_logs(lambda log: 0.0), "of a prompt of 12 tokens are all 0"),
        (of_logs(lambda log: float("nan")), "of token 1 is nan"),
        (of_logs(lambda log: float("-inf")), "of token 1 is -inf"),
        (of_logs(lambda log: None), "of token 1 is None"),
        (of_logs(str), "of token 1 is '-"),
        (with_top(None), "top_logprobs is None, and has to be of type list"),
        (with_top([]), "it gives 0 top_logprobs"),
        (with_top([7] * (LENGTH + 1)), "an entry of top_logprobs is 7, and has to be an object"),
        (with_top([{}] + [{"a": float("nan")}] * LENGTH), "a likely token in place of .* is nan"),
        (with_top([{}] + [{"a": "b"}] * LENGTH), "a likely token in place of token 1 is 'b'"),
        (of_logs(lambda log: -1e308), "the log-probability of token 1 is -1e.308, .* of float32"),
        (with_tokens(["a"] * 3), "it gives 3 tokens for a prompt of 12 tokens, .* 13 are wanted"),
        (with_tokens(7), "tokens is 7, and has to be of type list"),
        (lambda choice: choice | {"logprobs": None}, "logprobs is None"),
        (lambda choice: choice | {"index": 5}, r"its choices have the indices \[5\]"),
        (lambda choice: {"text": "", "logprobs": choice["logprobs"]}, "index is None"),
        (lambda choice: 1, "index is None"),
    ],
)
def test_likelihoods_that_are_not_those_of_the_prompt_are_refused(folder, served, change, reason):
    with pytest.raises(ConfigError, match=reason) as refusal:
        likelihoods(folder, served, change=change)
    assert "gives no answer that can be read: " in str(refusal.value)
    assert "give the log-probabilities of a prompt" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda choice: choice | {"text": None}, "text is None, and has to be of type str"),
        (lambda choice: choice | {"text": 7}, "text is 7"),
        (lambda choice: choice | {"index": 5}, r"its choices have the indices \[5\]"),
        (lambda choice: {"index": 0, "message": {"content": "5"}}, "text is None"),
        (lambda choice: 1, "index is None"),
    ],
)
def test_texts_that_are_none_are_refused(folder, served, change, reason):
    with pytest.raises(ConfigError, match=reason):
        written(folder, served, change=change)


def test_tokens_in_any_spelling_are_taken(folder, served):
    whole = likelihoods(folder, served)
    change = with_tokens(["?"] * (LENGTH + 1))
    assert likelihoods(folder, served, change=change, answering="served") == whole


@pytest.mark.parametrize("ask", [likelihoods, written])
def test_the_answer_of_another_model_is_refused(folder, served, ask):
    with pytest.raises(ConfigError, match="the model 'other' answers, and 'served' was asked"):
        ask(folder, served, answering="other")


@pytest.mark.parametrize("name", [{"a": 1}, 7, None])
def test_a_model_whose_name_is_no_text_is_refused(folder, served, name):
    with pytest.raises(ConfigError, match="/v1/models names no model .* is no text"):
        likelihoods(folder, served, name=name)


def test_an_empty_text_is_one(folder, served):
    assert written(folder, served, change=lambda choice: choice | {"text": ""}) == [""]


def answer(*lengths):
    """An answer to prompts of these lengths, and the prompts."""
    choices = []
    for index, length in enumerate(lengths):
        logprobs = {"token_logprobs": [None] + [-1.0] * length, "top_logprobs": [{}] * (length + 1)}
        choices.append({"index": index, "text": "", "logprobs": logprobs})
    return {"choices": choices}, [list(range(length)) for length in lengths]


def test_choices_belong_to_prompts_by_their_index():
    content, prompts = answer(3, 5)
    content["choices"].reverse()
    require_likelihoods(content, prompts)
    require_texts(content, prompts)
    with pytest.raises(ConfigError, match="it gives 4 token_logprobs for a prompt of 5 tokens"):
        require_likelihoods(content, prompts[::-1])


@pytest.mark.parametrize("content", [[], 7, {"choices": []}, {"x": 1}, {"choices": None}])
def test_an_answer_without_choices_is_refused(content):
    for require in (require_likelihoods, require_texts):
        with pytest.raises(ConfigError, match="choices"):
            require(content, [[1, 2]])


def test_two_choices_for_a_prompt_are_refused():
    content, prompts = answer(3)
    content["choices"].append(deepcopy(content["choices"][0]) | {"index": 1})
    with pytest.raises(ConfigError, match="the number of prompts is 1"):
        require_likelihoods(content, prompts)


def test_rounding_above_zero_and_short_certainties_are_taken():
    content, prompts = answer(8)
    logs = content["choices"][0]["logprobs"]["token_logprobs"]
    logs[1:] = [0.0] * 8
    require_likelihoods(content, prompts)
    logs[3] = 1e-4
    require_likelihoods(json.loads(json.dumps(content)), prompts)


@pytest.mark.parametrize("stated", ["32", -5, 1, 0, True, None, [32], 7.5])
def test_a_length_that_is_none_is_not_taken(folder, served, stated):
    whole = likelihoods(folder, served)
    assert likelihoods(folder, served, max_model_len=stated) == whole


def test_no_bars_are_drawn(folder, served, capsys):
    likelihoods(folder, served)
    written(folder, served)
    assert "Requesting API" not in capsys.readouterr().err


@pytest.mark.parametrize("failures", [[500], [429, 503], [0], [502, 0, 500, 429]])
def test_what_passes_is_waited_for(folder, served, pauses, failures):
    whole = likelihoods(folder, served)
    assert likelihoods(folder, served, failures=failures) == whole
    assert pauses == [1.0, 2.0, 4.0, 8.0][: len(failures)]


def test_a_server_that_goes_on_failing_is_refused(folder, served, pauses):
    with pytest.raises(ConfigError, match="gives no answer that can be read: HTTPError: 503"):
        likelihoods(folder, served, failures=[503] * 5)
    assert len(pauses) == 4


def test_a_request_that_is_wrong_is_not_sent_again(folder, served, pauses):
    with pytest.raises(ConfigError, match="HTTPError: 400"):
        likelihoods(folder, served, failures=[400])
    assert not pauses
