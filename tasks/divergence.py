"""Divergence from the unquantized model, on three kinds of text, each a task of its own.

The windows of `wiki` are those of wikitext, in the same pass; those of `code` are source code;
those of `own` are what the unquantized model writes, greedily, after the beginnings of wikitext's
windows.

The divergence is KL(P || Q) in nats, with P of the unquantized and Q of the quantized model, over
the whole vocabulary, at the length - 1 positions of every window; for `own`, at the positions that
the model has written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qbench.errors import ConfigError, unknown_name
from qbench.records import Score
from qbench.tasks import code_text
from qbench.tasks.contract import Context, Outcome
from qbench.tasks.declaration import Cost, DeclaredScore, Table, Unit
from qbench.tasks.scores import mean_score
from qbench.tasks.text import TextTask, window_row, window_score

if TYPE_CHECKING:
    from qbench.records import TaskSpec
    from qbench.tasks.article_windows import ArticleWindows
    from qbench.tasks.data import Source

NATS: Unit = "nats per token"
WRITTEN = ".tokens.npy"  # beside the reference, what the unquantized model has written
TEXTS = {"wiki": "divergence", "code": "divergence_code", "own": "divergence_own"}  # task by text


class Divergence(TextTask):
    """How far the quantized model's predictions are from the unquantized model's.

    text: its kind. like: the task whose settings in a preset are used where this one has none.
    """

    name: str = "divergence"
    about: str = (
        "KL divergence and top-1 agreement with the unquantized model, on the windows of wikitext"
    )
    table: Table | str = "wikitext"
    cost: Cost = Cost(items=140, pass_share=0.5)
    scores: tuple[DeclaredScore, ...] = (
        DeclaredScore(
            metric="kl_mean",
            unit=NATS,
            better="lower",
            nature="relative",
            headline=True,
            screen="KL",
        ),
        DeclaredScore(
            metric="top1_agreement",
            unit="%",
            better="higher",
            nature="relative",
            headline=True,
            screen="top-1 %",
        ),
        DeclaredScore(metric="kl_reverse", unit=NATS, better="lower", nature="relative"),
        DeclaredScore(metric="kl_median", unit=NATS, better="lower", nature="relative"),
        DeclaredScore(metric="kl_p99", unit=NATS, better="lower", nature="relative"),
        DeclaredScore(metric="kl_noise", unit=NATS, better="lower", nature="relative"),
    )
    order: int = 20
    needs_unquantized: bool = True
    text: Literal["wiki", "code", "own"] = "wiki"
    like: str = TEXTS["wiki"]

    def texts(self, source: Source) -> Sequence[str]:
        """Source code, or the text of wikitext."""
        return code_text.code_texts() if self.text == "code" else source.text(self.table_name)

    def spec(self, source: Source, *args: Any, **options: Any) -> TaskSpec:
        """As of any task on running text; its hash is that of the text, so that none is shared."""
        spec = super().spec(source, *args, **options)
        if self.text == "code":
            known = {"data": code_text.NAME, "sha256": code_text.code_sha256()}
            return spec.model_copy(update=known)
        if self.text == "own":
            mixed = hashlib.sha256(f"{spec.sha256}, continued by the model".encode()).hexdigest()
            return spec.model_copy(update={"sha256": mixed})
        return spec

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Get the unquantized model's log-probabilities from their file, or by a pass of the model.

        They go into the cell's cache. There the pass that judges the model finds them, whichever
        task on the same windows comes first.
        """
        from qbench.tasks.own_text import read_continued, write_continued
        from qbench.tasks.reference import ReferenceLogits, reference_key

        unquantized = context.unquantized
        if unquantized is None:
            raise _no_reference(spec)
        path = unquantized.file(spec)
        if path.is_file():
            reference = ReferenceLogits.open(path)
            if self.text == "own":
                read_continued(path.with_suffix(WRITTEN))  # here, a damaged one is made again
        else:
            model, tokenizer = unquantized.load()
            inputs = self._cut(context, spec, tokenizer).tokens
            if self.text == "own":
                inputs = write_continued(model, inputs, path.with_suffix(WRITTEN))
            reference = ReferenceLogits.write(
                model, inputs, path, context.progress, context.batch_size
            )
        context.cache[reference_key(spec)] = reference

    def _cut(self, context: Context, spec: TaskSpec, tokenizer: Any) -> ArticleWindows:
        """The windows of the text; of `own`, those whose beginnings are continued."""
        from qbench.tasks.article_windows import article_windows

        return article_windows(self.texts(context.source), tokenizer, spec)

    def _windows(self, context: Context, spec: TaskSpec) -> ArticleWindows:
        """The windows on which the models are compared."""
        from qbench.tasks.own_text import prompt_of, read_continued
        from qbench.tasks.reference import reference_key

        windows = self._cut(context, spec, context.tokenizer)
        if self.text == "own":
            reference = context.cache[reference_key(spec)]
            tokens = read_continued(reference.path.with_suffix(WRITTEN))
            prompt = prompt_of(spec.length or 0)
            if not windows.tokens[:, :prompt].equal(tokens[:, :prompt]):
                reference.require_tokens(windows.tokens)
            return replace(windows, tokens=tokens)
        return windows

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `kl_mean`, `kl_reverse` (of P from Q), `kl_median` and `kl_p99` (over tokens) and
        `top1_agreement`; one row per window.

        Also `kl_noise`, what rounding alone makes of the unquantized model: a KL that is not far
        above it says nothing.
        """
        from qbench.tasks.own_text import prompt_of
        from qbench.tasks.reference import reference_key
        from qbench.tasks.window_pass import measure

        if reference_key(spec) not in context.cache:
            raise _no_reference(spec)
        losses = measure(context, spec, self._windows(context, spec), compares=True)
        # Of `own` text the first tokens are not the model's.
        first = prompt_of(spec.length or 0) - 1 if self.text == "own" else 0
        rows: list[dict[str, Any]] = []
        for index, window in enumerate(losses):
            kl_mean = float(window.kl[first:].mean(dtype=np.float64))
            agreement = float(window.agree[first:].mean())
            reverse = float(window.reverse[first:].mean(dtype=np.float64))
            values = {"kl_mean": kl_mean, "kl_reverse": reverse, "top1_agreement": agreement}
            rows.append(window_row(index, window) | values)
        mean = window_score(spec.name, "kl_mean", rows, higher=False)
        top = window_score(spec.name, "top1_agreement", rows, higher=True)
        every_token = np.concatenate([window.kl[first:] for window in losses])
        reverse_mean = window_score(spec.name, "kl_reverse", rows, higher=False)
        scores: tuple[Score, ...] = (mean, reverse_mean)
        for metric, share in (("kl_median", 0.5), ("kl_p99", 0.99)):
            quantile = Score(
                task=spec.name,
                metric=metric,
                value=float(np.quantile(every_token, share)),
                stderr=None,
                n=len(every_token),
                higher_is_better=False,
            )
            scores = (*scores, quantile)
        scores = (*scores, top)
        noise = context.cache[reference_key(spec)].noise
        if noise:
            scores = (*scores, mean_score(spec.name, "kl_noise", noise, higher=False))
        return Outcome(scores, rows)


def _no_reference(spec: TaskSpec) -> ConfigError:
    return ConfigError(
        f"{spec.name} needs the log-probabilities of the unquantized model; "
        "run it through `qbench run`, which writes them, or leave it out of --tasks"
    )


def divergences() -> list[Divergence]:
    """One task for each kind of text."""
    abouts = {
        "code": "the same on source code, of Python's standard library",
        "own": "the same on what the unquantized model writes, greedily, behind 32 tokens of text",
    }
    tasks = [Divergence()]
    for place, (text, about) in enumerate(abouts.items(), 1):
        changes = {"name": TEXTS[text], "about": about, "text": text, "order": 20 + place}
        # A pass of their own, where that on wikitext is shared with its perplexity.
        cost = tasks[0].cost.model_copy(update={"pass_share": 1.0})
        tasks.append(tasks[0].model_copy(update={**changes, "cost": cost}))
    return tasks


def with_texts(names: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The tasks with the divergences on these kinds of text, in the place of those that are there.

    ConfigError for another kind.
    """
    for text in texts:
        if text not in TEXTS:
            raise ConfigError(unknown_name("text", text, TEXTS))
    divergent = list(TEXTS.values())
    place = next((k for k, name in enumerate(names) if name in divergent), len(names))
    others = [name for name in names if name not in divergent]
    return (*others[:place], *(TEXTS[text] for text in dict.fromkeys(texts)), *others[place:])
