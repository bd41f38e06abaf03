"""Windows of a text to evaluate on, each with the article that it is from.

There are two ways to cut them. Consecutive: the whole text is joined and cut into windows, as for
published perplexities (`qbench.calibration.windows`); the first windows are from the first
articles. Spread: each article is cut by itself, with at most a few windows of one article, so that
the same number of tokens says more about the whole text. Windows of one article are alike, and
count as one cluster.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from qbench.calibration.windows import BETWEEN, windows
from qbench.errors import DataError
from qbench.models.tokenizers import without_ending
from qbench.records import TaskSpec

SEED = 1234  # of the choice of articles and of their windows
TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")  # a line of WikiText that may begin an article


@dataclass(frozen=True)
class ArticleWindows:
    """tokens (n, length) int64, and the article of each window, None where that is not known."""

    tokens: Tensor
    articles: tuple[str | None, ...]


def article_windows(
    texts: Sequence[str], tokenizer: Any, spec: TaskSpec, between: str = BETWEEN
) -> ArticleWindows:
    """The windows for a task on running text; DataError where there is none.

    between: joins the texts before consecutive windows are cut.
    """
    length = spec.length or 0
    if spec.spread is not None:
        return _spread(texts, tokenizer, length, spec.limit, spec.spread)
    tokens = windows(texts, tokenizer, length, spec.limit, between)
    return ArticleWindows(tokens, _articles_of(texts, tokenizer, tokens.shape, between))


def articles(texts: Sequence[str]) -> list[list[str]]:
    """The texts by article: those behind one line with a title, or each for itself.

    Blank lines before the first title are of its article.
    """
    titles = _titles(texts)
    if not titles:
        return [[text] for text in texts]
    if not any(text.strip() for text in texts[: titles[0]]):
        titles[0] = 0
    begins = sorted({0, *titles})
    ends = [*begins[1:], len(texts)]
    return [list(texts[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def _titles(texts: Sequence[str]) -> list[int]:
    """The places of titles; of a text with blank lines those that stand behind one.

    Formulas that are lines of their own look like titles, as in WikiText-2's "Constant k filter".
    """
    has_blanks = not all(text.strip() for text in texts)
    places = []
    for place, text in enumerate(texts):
        inside = has_blanks and place > 0 and texts[place - 1].strip()
        if TITLE.fullmatch(text) and not inside:
            places.append(place)
    return places


def _spread(
    texts: Sequence[str], tokenizer: Any, length: int, limit: int | None, most: int
) -> ArticleWindows:
    """Windows of as many articles as possible, up to `most` of each, in the text's order."""
    parts = articles(texts)
    cut = _cut(parts, tokenizer, length)
    if not cut:  # of articles that are all shorter than a window, some make one together
        cut = _cut(_joined(parts, tokenizer, length), tokenizer, length)
    if not cut:
        raise DataError(
            f"the {len(parts)} articles of the text have fewer than {length} tokens together; "
            "give a smaller length, or more text"
        )
    drawn = _draw({index: len(windows) for index, windows in cut.items()}, most)
    chosen = sorted(drawn[:limit])
    tokens = torch.stack([cut[article][window] for article, window in chosen])
    return ArticleWindows(tokens, tuple(_name(article) for article, _ in chosen))


def _cut(parts: Sequence[Sequence[str]], tokenizer: Any, length: int) -> dict[int, Tensor]:
    """The windows of each part that has one, by its place."""
    cut = {}
    for index, part in enumerate(parts):
        if any(text.strip() for text in part):
            of_article = _windows_of(part, tokenizer, length)
            if len(of_article):
                cut[index] = of_article
    return cut


def _joined(parts: Sequence[Sequence[str]], tokenizer: Any, length: int) -> list[list[str]]:
    """Parts with those behind them, until they hold a window."""
    joined: list[list[str]] = [[]]
    for part in parts:
        if len(_windows_of(joined[-1], tokenizer, length)):
            joined.append([])
        joined[-1].extend(part)
    return joined


def _windows_of(part: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """(n, length), n = 0 where the article is too short."""
    ids = without_ending(tokenizer)(BETWEEN.join(part), verbose=False)["input_ids"]
    count = len(ids) // length
    return torch.tensor(ids[: count * length], dtype=torch.long).view(count, length)


def _draw(counts: dict[int, int], most: int) -> list[tuple[int, int]]:
    """(article, window) in the order in which they are taken: one of each, then a second of each.

    So the windows of a small limit are among those of a larger one.
    """
    random = Random(SEED)
    order = list(counts)
    random.shuffle(order)
    drawn = {}
    for article, count in counts.items():
        drawn[article] = random.sample(range(count), min(most, count))
    return list(_turns(order, drawn, most))


def _turns(
    order: Sequence[int], drawn: dict[int, list[int]], most: int
) -> Iterator[tuple[int, int]]:
    for turn in range(most):
        for article in order:
            if turn < len(drawn[article]):
                yield article, drawn[article][turn]


def _articles_of(
    texts: Sequence[str], tokenizer: Any, shape: Sequence[int], between: str
) -> tuple[str | None, ...]:
    """The article in which each of the consecutive windows begins, by the tokens' letters.

    shape: of the windows, how many and how long.
    """
    count, length = shape
    if not getattr(tokenizer, "is_fast", False):
        return (None,) * count
    joined = between.join(texts)
    encoded = without_ending(tokenizer)(joined, verbose=False, return_offsets_mapping=True)
    begins = [0]
    for part in articles(texts):
        begins.append(begins[-1] + len(between.join(part)) + len(between))
    names = []
    for index in range(count):
        letter = encoded["offset_mapping"][index * length][0]
        names.append(_name(bisect_right(begins, letter) - 1))
    return tuple(names)


def _name(article: int) -> str:
    """How rows of the samples name an article: by its place in the text, from 0."""
    return f"article-{article}"
