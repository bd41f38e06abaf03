"""Divergence on source code and on the model's own text: tasks of their own, never mixed."""

from __future__ import annotations

import copy

import pytest
import torch

from qbench.errors import ConfigError, StoreError
from qbench.experiment.grid import Grid
from qbench.tasks import code_text
from qbench.tasks.article_windows import article_windows
from qbench.tasks.code_text import LONGEST, MODULES, code_texts
from qbench.tasks.contract import Context, Unquantized
from qbench.tasks.divergence import WRITTEN, with_texts
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.own_text import prompt_of, read_continued
from qbench.tasks.registry import get_task
from tiny_runs import run_args

MINI = MiniSource()
ASKED = {"limit": 3, "length": 24, "spread": 1}


@pytest.fixture
def judged(tiny, tokenizer, tmp_path):
    """A function: the outcome of a task for a damaged model, its spec, both models and the file."""
    model = tiny()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight += 0.05

    def judge(name):
        task = get_task(name)
        spec = task.spec(MINI, **ASKED)
        path = tmp_path / f"{name}.npy"
        unquantized = Unquantized(lambda: (model, tokenizer), lambda spec: path)
        context = Context(other, tokenizer, MINI, batch_size=1, unquantized=unquantized)
        task.prepare(context, spec)
        return task.evaluate(context, spec), spec, (model, other), path

    return judge


@torch.no_grad()
def plain(models, windows, first):
    """Mean KL at the positions from `first` on."""
    logs = [model.double()(input_ids=windows).logits[:, :-1].log_softmax(-1) for model in models]
    p, q = logs
    return float((p.exp() * (p - q)).sum(-1)[:, first:].mean())


def value(outcome, metric):
    (score,) = [score for score in outcome.scores if score.metric == metric]
    return score.value


def test_code_is_the_standard_library(judged, tokenizer, request):
    texts = code_texts()
    assert len(texts) == MODULES and sum("\nimport " in text for text in texts) > MODULES / 2
    assert max(map(len, texts)) <= LONGEST and code_texts() == texts
    request.getfixturevalue("few_modules")
    outcome, spec, models, _ = judged("divergence_code")
    wiki = get_task("divergence").spec(MINI, **ASKED)
    assert spec.sha256 != wiki.sha256 and spec.data == "python-standard-library"
    windows = article_windows(code_text.code_texts(), tokenizer, spec).tokens
    assert value(outcome, "kl_mean") == pytest.approx(plain(models, windows, 0), rel=1e-3)
    assert len({row["cluster"] for row in outcome.samples}) == 3, "of three modules"
    assert {score.task for score in outcome.scores} == {spec.name}


def test_own_text_is_what_the_unquantized_model_writes(judged, tokenizer):
    outcome, spec, models, path = judged("divergence_own")
    begun = article_windows(MINI.text("wikitext"), tokenizer, spec).tokens
    prompt = prompt_of(24)
    tokens = begun[:, :prompt]
    while tokens.shape[1] < 24:
        with torch.no_grad():
            logits = models[0](input_ids=tokens).logits[:, -1]
        logits[:, tokenizer.eos_token_id] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    written = read_continued(path.with_suffix(WRITTEN))
    assert prompt == 12 and torch.equal(written, tokens)
    expected = plain(models, written, prompt - 1)
    assert value(outcome, "kl_mean") == pytest.approx(expected, rel=1e-3)
    assert spec.sha256 != get_task("divergence").spec(MINI, **ASKED).sha256


def test_own_text_is_written_once_and_a_damaged_file_is_named(judged):
    first, _, _, path = judged("divergence_own")
    written = path.with_suffix(WRITTEN)
    stamp = written.stat().st_mtime_ns
    assert judged("divergence_own")[0].scores == first.scores
    assert written.stat().st_mtime_ns == stamp
    written.write_bytes(written.read_bytes()[:-40])
    with pytest.raises(StoreError, match="cannot be read as tokens"):
        judged("divergence_own")


def test_texts_take_the_place_of_divergence():
    names = ("wikitext", "divergence", "mmlu")
    assert with_texts(names, ("own", "code", "own")) == (
        "wikitext",
        "divergence_own",
        "divergence_code",
        "mmlu",
    )
    assert with_texts(("mmlu",), ("wiki",)) == ("mmlu", "divergence")
    with pytest.raises(ConfigError, match="unknown text 'wikj'. Did you mean 'wiki'"):
        with_texts(names, ("wikj",))


def test_a_preset_asks_all_texts_alike():
    grid = Grid()
    for text in ("code", "own"):
        task = get_task(f"divergence_{text}")
        assert grid.task_options(task.name, task.like) == grid.task_options("divergence")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_run_keeps_the_texts_apart(tiny_folder, command, tmp_path):
    extra = ["--text", "wiki,code,own"]
    for name in ("divergence", "divergence_code", "divergence_own"):
        extra += ["--set", f"{name}.limit=3", "--set", f"{name}.length=24"]
    args = run_args(tiny_folder, tmp_path / "run", "none,rtn", "3", tuple(extra), ("wikitext",))
    code, text, error = command(*args)
    assert code == 0, text + error
    table = (tmp_path / "run" / "leaderboard.md").read_text()
    for name in ("mini-divergence ", "mini-divergence_code ", "mini-divergence_own "):
        assert f"{name}kl_mean" in table.replace("\\", "")
