"""`qbench eval --through`: the scores of an engine, and how far it is from transformers."""

from __future__ import annotations

import copy

import pytest

import qbench
from completions_server import completions_server
from qbench import Scheme
from qbench.comparison.parity import Parity, parity
from qbench.errors import ConfigError
from qbench.tasks.contract import Context
from qbench.tasks.engines import Engine
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import get_task

LIMITS = (
    "wikitext.limit=2",
    "wikitext.length=64",
    "arc_easy.limit=4",
    "gsm8k.limit=2",
    "gsm8k.generate=1",
    "gsm8k.max_gen_toks=8",
)
COMMON = ("--data", "mini", "--dtype", "float32")
QUESTIONS = (*COMMON, "--tasks", "arc_easy", "--set", "arc_easy.limit=2")
ASKED = [*COMMON, "--tasks", "wikitext,arc_easy,gsm8k"]
for _limit in LIMITS:
    ASKED += ["--set", _limit]


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory):
    quantized = qbench.quantize(tiny(hidden_size=64), "rtn", Scheme(3, 32))
    quantized.tokenizer = tokenizer
    return quantized.save(tmp_path_factory.mktemp("through") / "tiny")


@pytest.fixture(scope="module")
def served(folder):
    return qbench.load(folder, "float32", packed=False)


def lines(text, word=""):
    return [line for line in text.splitlines() if line.startswith(word)]


def numbers(line):
    """`largest=0.0003` and the like of a line of parity."""
    return dict(part.split("=") for part in line.split() if "=" in part)


@pytest.mark.slow
def test_an_endpoint_gives_the_scores_of_transformers(folder, served, command):
    alone = command("eval", folder, *ASKED)
    with completions_server(served.model, served.tokenizer) as address:
        done = command("eval", folder, *ASKED, "--through", address, "--parity")
    assert done.code == alone.code == 0, done.err + alone.err
    scores = lines(alone.out)
    assert lines(done.out)[: len(scores)] == scores and len(scores) > 5
    compared = {line.split()[1]: numbers(line) for line in lines(done.out, "parity")}
    assert compared.keys() == {"mini-text", "mini-arc_easy", "mini-gsm8k"}
    # A solution of GSM8K is a sum over some hundred tokens, each rounded in float32.
    assert all(float(of["largest"]) < 1e-3 for of in compared.values()), compared
    assert compared["mini-arc_easy"]["flips"] == "0/4"
    assert compared["mini-arc_easy"]["log-probabilities"] == "16"
    assert "flips" not in compared["mini-text"]


def test_prompts_in_the_template_are_asked_alike(served, tmp_path, command):
    """A template that changes the prompt changes the scores, and an engine gives the same."""
    served.model.save_pretrained(tmp_path)
    chatty = copy.deepcopy(served.tokenizer)
    chatty.chat_template = "{% for message in messages %}# {{ message['content'] }} #{% endfor %}"
    chatty.save_pretrained(tmp_path)
    asked = ("eval", tmp_path, *QUESTIONS, "--chat-template", "--bos", "tokenizer")
    plain = command("eval", tmp_path, *QUESTIONS)
    templated = command(*asked)
    assert plain.code == templated.code == 0, plain.err + templated.err
    assert lines(plain.out) != lines(templated.out)
    with completions_server(served.model, chatty) as address:
        done = command(*asked, "--through", address)
    assert lines(done.out) == lines(templated.out), done.err


@pytest.mark.parametrize("through", [[], ["--through", "http://127.0.0.1:9"]])
def test_a_template_that_the_model_has_not_is_refused(folder, command, through):
    done = command("eval", folder, *QUESTIONS, "--chat-template", *through)
    assert done.code == 2 and "has no chat template; leave out --chat-template" in done.err


@pytest.mark.parametrize("ending", ["", "/v1", "/v1/completions"])
def test_an_error_of_the_engine_is_seen(folder, served, command, ending):
    """Of bytes, a choice has as many tokens as letters: each is off by the same."""
    with completions_server(served.model, served.tokenizer, error=-0.5) as address:
        arguments = ("--through", address + ending, "--parity")
        done = command("eval", folder, *QUESTIONS, *arguments)
    (line,) = lines(done.out, "parity")
    assert float(numbers(line)["largest"]) > 0.49


def test_a_server_that_gives_no_likelihoods_of_prompts_is_refused(folder, served, command):
    with completions_server(served.model, served.tokenizer, echo=False) as address:
        done = command("eval", folder, *QUESTIONS, "--through", address)
    assert done.code == 2 and "gives no answer that can be read" in done.err
    assert "Traceback" not in done.err


def test_another_name_than_the_folders_is_said(folder, served, command):
    with completions_server(served.model, served.tokenizer) as address:
        done = command("eval", folder, *QUESTIONS, "--through", address)
    assert "answers with a model that it calls 'served'; whether it is that of" in done.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mini-gsm8k. 4 prompts were longer")
@pytest.mark.parametrize(("room", "cut"), [(4096, 0), (200, 4)])
def test_what_is_cut_before_writing_is_counted(folder, served, room, cut):
    """Two questions, each once for the likelihood of its solution and once to be written."""
    task = get_task("gsm8k")
    spec = task.spec(MiniSource(), limit=2, generate=2).model_copy(update={"max_gen_toks": 190})
    with completions_server(served.model, served.tokenizer, max_model_len=room) as address:
        engine = Engine(folder, address, served.model.config, served.tokenizer, "float32")
        outcome = task.evaluate(Context(engine, served.tokenizer, MiniSource()), spec)
    assert outcome.facts["cut_prompts"] == cut


def test_windows_that_do_not_fit_the_context_are_refused(folder, served, command):
    with completions_server(served.model, served.tokenizer, max_model_len=32) as address:
        done = command("eval", folder, *ASKED, "--through", address)
    assert done.code == 2 and "the engine reads 31 tokens at most, and windows have 64" in done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--through", "http://127.0.0.1:9"], "names no model that is served"),
        (["--through", "nothing"], "--through 'nothing' is no engine"),
        (["--parity"], "--parity compares with an engine"),
        (["--through", "nothing", "--unquantized", "x"], "is for divergence"),
    ],
)
def test_what_is_no_engine_is_refused(folder, command, arguments, reason):
    done = command("eval", folder, *QUESTIONS, *arguments)
    assert done.code == 2 and reason in done.err and "Traceback" not in done.err


def test_vllm_that_is_not_installed_is_said(folder, command, monkeypatch):
    monkeypatch.setattr("qbench.tasks.engines.find_spec", lambda name: None)
    done = command("eval", folder, *QUESTIONS, "--through", "vllm")
    assert done.code == 2 and "needs vllm in the environment of this qbench" in done.err


def test_divergence_wants_what_no_engine_gives(folder, command):
    done = command(
        "eval", folder, "--data", "mini", "--tasks", "divergence", "--through", "http://x"
    )
    assert done.code == 2 and "compares whole distributions" in done.err


# Parity of items


def choice(item, *logs):
    return {"doc_id": item, "filter": "none", "doc_hash": "d", "loglikelihoods": list(logs)}


def test_flips_are_items_with_another_likeliest_choice():
    mine = [choice(0, -1.0, -2.0), choice(1, -1.0, -2.0)]
    other = [choice(0, -1.5, -2.0), choice(1, -3.0, -2.0)]
    assert parity(mine, other) == Parity(2, 1, 2, 4, 2.0, 0.625)


def test_written_texts_are_answers_and_windows_are_none():
    text = {"doc_id": 0, "filter": "strict", "responses": [["7"]]}
    assert parity([text], [text | {"responses": [["8"]]}]) == Parity(1, 1, 1, 0, None, None)
    window = {"doc_id": 0, "filter": "none", "nll": 2.0}
    assert parity([window], [window | {"nll": 2.25}]) == Parity(1, 0, 0, 1, 0.25, 0.25)


def test_other_items_are_not_compared():
    with pytest.raises(ConfigError, match="not of the same items"):
        parity([choice(0, -1.0)], [choice(1, -1.0)])
