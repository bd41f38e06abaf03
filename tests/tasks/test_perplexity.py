"""Perplexity on C4, joined as in the GPTQ paper's code, and in windows of other lengths."""

from __future__ import annotations

import pytest
import torch

from qbench.tasks.article_windows import article_windows
from qbench.tasks.contract import Context
from qbench.tasks.folder import FolderSource, write_parquet
from qbench.tasks.mini_source import MiniSource, stand_in_name
from qbench.tasks.registry import get_task

TEXTS = [f"text {k} of a page, with some words." for k in range(1200)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": text} for text in TEXTS]
    write_parquet(rows, folder / "c4_validation" / "validation.parquet")
    return FolderSource(folder)


def test_c4_is_its_first_texts_joined_by_a_space(source, tokenizer):
    task = get_task("c4")
    spec = task.spec(source, limit=3, length=50)
    cut = article_windows(source.text("c4"), tokenizer, spec, task.between)
    expected = tokenizer(" ".join(TEXTS[:1100]))["input_ids"][:150]
    assert cut.tokens.flatten().tolist() == expected
    assert len(source.text("c4")) == 1100
    first = len(TEXTS[0]) + 1
    assert cut.articles == ("article-0", f"article-{50 // first}", f"article-{100 // first}")


@torch.no_grad()
def test_perplexity_of_c4_is_that_of_a_plain_computation(source, tokenizer, tiny):
    model = tiny()
    task = get_task("c4")
    spec = task.spec(source, limit=4, length=64)
    outcome = task.evaluate(Context(model, tokenizer, source), spec)
    tokens = torch.tensor(tokenizer(" ".join(TEXTS[:1100]))["input_ids"][:256]).view(4, 64)
    logits = model(input_ids=tokens).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    (found,) = [score for score in outcome.scores if score.metric == "perplexity"]
    assert found.value == pytest.approx(float(nll.exp()), rel=1e-4)
    assert found.task == "c4" and outcome.facts["windows_without_bos"] == 4


@pytest.mark.parametrize("text", ["wikitext", "c4"])
@pytest.mark.parametrize("length", [4096, 8192])
def test_there_are_windows_of_the_lengths_that_papers_report(text, length):
    task = get_task(f"{text}_{length}")
    assert task.table_name == text and task.between == get_task(text).between
    source = MiniSource()
    if text == "wikitext":
        spec = task.spec(source)
        assert spec.length == length and spec.name == stand_in_name(task.name)
        assert "wikitext" not in spec.name, "the embedded text is not WikiText"
        assert task.spec(source, length=64).length == 64
