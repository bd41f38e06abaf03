"""Windows over articles: which, of how many articles, and how a row says so."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from places import REAL_DATA, needs_real_data
from qbench.calibration.windows import windows
from qbench.errors import ConfigError, DataError
from qbench.records import TaskSpec
from qbench.tasks.article_windows import article_windows, articles
from qbench.tasks.contract import Context
from qbench.tasks.folder import FolderSource
from qbench.tasks.mini_source import MiniSource
from qbench.tasks.registry import get_task

MINI = MiniSource()
FORMULA = " = 1 rad / s and k = \n"  # looks like a title, and does not stand behind a blank line
LINES = [
    *("", " = First one = \n", "", "some text", FORMULA, " = = A section = = \n"),
    *("", " = B = \n", "", "more"),
]


def asked(**protocol) -> TaskSpec:
    return get_task("wikitext").spec(MINI, **protocol)


def text_of(index: int, length: int) -> str:
    """An article whose every letter says which it is."""
    return chr(ord("a") + index) * length


def test_articles_begin_with_a_title():
    assert articles(LINES) == [LINES[:7], LINES[7:]]
    assert articles(["before", *LINES]) == [["before", ""], LINES[1:7], LINES[7:]]
    packed = [line for line in LINES if line and line != FORMULA]
    assert articles(packed) == [packed[:3], packed[3:]]
    assert articles(["a", "b"]) == [["a"], ["b"]]


def test_the_first_window_is_of_the_first_article(tokenizer):
    texts = ["", " = A = \n", "", "a" * 60, "", " = B = \n", "", "b" * 60]
    found = article_windows(texts, tokenizer, asked(length=16))
    assert found.articles == ("article-0",) * 5 + ("article-1",) * 4


def test_spread_takes_one_window_of_each_article_before_a_second(tokenizer):
    texts = [text_of(index, 20 + 10 * index) for index in range(5)]
    texts.append("too short")
    for limit, most in [(1, 1), (4, 1), (5, 2), (7, 2), (100, 3)]:
        found = article_windows(texts, tokenizer, asked(length=10, limit=limit, spread=most))
        of_articles = Counter(found.articles)
        enough = sum(min(most, 2 + index) for index in range(5))
        assert len(found.tokens) == len(found.articles) == min(limit, enough)
        assert max(of_articles.values()) == -(-min(limit, 5 * most) // 5)
        for row, article in zip(found.tokens, found.articles, strict=True):
            assert {tokenizer.decode(row)} == {text_of(int(article.split("-")[1]), 10)}


def test_a_small_choice_is_part_of_a_larger_one(tokenizer):
    texts = MINI.text("wikitext")
    few, more = (
        article_windows(texts, tokenizer, asked(length=64, limit=limit, spread=2))
        for limit in (9, 40)
    )
    again = article_windows(texts, tokenizer, asked(length=64, limit=9, spread=2))
    assert torch.equal(few.tokens, again.tokens)
    assert {tuple(row.tolist()) for row in few.tokens} < {
        tuple(row.tolist()) for row in more.tokens
    }
    assert len(set(more.articles)) >= 24
    assert list(more.articles) == sorted(more.articles, key=lambda name: int(name.split("-")[1]))


def test_published_windows_are_consecutive_and_know_their_article(tokenizer):
    texts = [text_of(index, 30) for index in range(4)]
    found = article_windows(texts, tokenizer, asked(length=20))
    assert torch.equal(found.tokens, windows(texts, tokenizer, 20))
    assert found.articles == ("article-0", "article-0", "article-1", "article-1", "article-2",
                              "article-3")  # fmt: skip
    for row, article in zip(found.tokens, found.articles, strict=True):
        first = tokenizer.decode(row).strip()[0]
        assert first == text_of(int(article.split("-")[1]), 1)


def test_articles_shorter_than_a_window_are_joined(tokenizer):
    cut = article_windows(["a" * 40, "b" * 40, "c" * 40], tokenizer, asked(length=50, spread=1))
    assert tokenizer.decode(cut.tokens[0]) == "a" * 40 + "\n\n" + "b" * 8
    assert len(cut.tokens) == 1


def test_the_text_is_too_short(tokenizer):
    with pytest.raises(DataError, match="the 2 articles of the text have fewer than 90 tokens"):
        article_windows(["a" * 40, "b" * 40], tokenizer, asked(length=90, spread=1))
    with pytest.raises(ConfigError, match="spread=0 is too small; give 1 or more"):
        asked(spread=0)


def test_spread_is_another_protocol_and_its_absence_none():
    published, spread = asked(length=64), asked(length=64, spread=2)
    assert published != spread
    assert "spread" not in published.facts() and spread.facts()["spread"] == 2


def test_rows_name_their_article(tokenizer, tiny):
    task, spec = get_task("wikitext"), asked(length=32, limit=6, spread=1)
    outcome = task.evaluate(Context(tiny(), tokenizer, MINI, batch_size=1), spec)
    assert len({row["cluster"] for row in outcome.samples}) == 6


@needs_real_data
def test_wikitext_has_60_articles():
    texts = FolderSource(REAL_DATA).text("wikitext")
    parts = articles(texts)
    assert len(parts) == 60
    assert all("".join(part[:2]).startswith(" = ") for part in parts)
