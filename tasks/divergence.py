"""Divergence from the unquantized model, on the windows of wikitext and in the same pass.

KL(P || Q) in nats, P of the unquantized and Q of the quantized model, over the whole vocabulary at
the length - 1 positions of every window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.errors import ConfigError
from qbench.records import Score
from qbench.tasks.contract import Context, Outcome
from qbench.tasks.declaration import Cost, DeclaredScore, Table
from qbench.tasks.scores import mean_score
from qbench.tasks.text import TextTask, window_row, window_score

if TYPE_CHECKING:
    from qbench.records import TaskSpec


class Divergence(TextTask):
    """How far the quantized model's predictions are from the unquantized model's."""

    name: str = "divergence"
    about: str = (
        "KL divergence and top-1 agreement with the unquantized model, on the windows of wikitext"
    )
    table: Table | str = "wikitext"
    cost: Cost = Cost(items=140, pass_share=0.5)
    scores: tuple[DeclaredScore, ...] = (
        DeclaredScore(metric="kl_mean", better="lower", headline=True, screen="KL"),
        DeclaredScore(
            metric="top1_agreement", unit="%", better="higher", headline=True, screen="top-1 %"
        ),
        DeclaredScore(metric="kl_reverse", better="lower"),
        DeclaredScore(metric="kl_median", better="lower"),
        DeclaredScore(metric="kl_p99", better="lower"),
        DeclaredScore(metric="kl_noise", better="lower"),
    )
    order: int = 20
    needs_unquantized: bool = True

    def prepare(self, context: Context, spec: TaskSpec) -> None:
        """Have the unquantized model's log-probabilities, from its file or by a pass of that model.

        They go into the cell's cache, where the pass that judges the model finds them, whichever
        task on the same windows is evaluated first.
        """
        from qbench.tasks.article_windows import article_windows
        from qbench.tasks.reference import ReferenceLogits, reference_key

        unquantized = context.unquantized
        if unquantized is None:
            raise _no_reference(spec)
        path = unquantized.file(spec)
        if path.is_file():
            reference = ReferenceLogits.open(path)
        else:
            model, tokenizer = unquantized.load()
            texts = context.source.text(self.table_name)
            inputs = article_windows(texts, tokenizer, spec).tokens
            reference = ReferenceLogits.write(
                model, inputs, path, context.progress, context.batch_size
            )
        context.cache[reference_key(spec)] = reference

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `kl_mean`, `kl_reverse` (of P from Q), `kl_median` and `kl_p99` (over tokens) and
        `top1_agreement`; one row per window.

        Also `kl_noise`, what rounding alone makes of the unquantized model: a KL that is not far
        above it says nothing.
        """
        from qbench.tasks.reference import reference_key
        from qbench.tasks.window_pass import measure

        if reference_key(spec) not in context.cache:
            raise _no_reference(spec)
        losses = measure(context, spec, self.table_name)
        rows: list[dict[str, Any]] = []
        for index, window in enumerate(losses):
            kl_mean = float(window.kl.mean(dtype=np.float64))
            agreement = float(window.agree.mean())
            reverse = float(window.reverse.mean(dtype=np.float64))
            values = {"kl_mean": kl_mean, "kl_reverse": reverse, "top1_agreement": agreement}
            rows.append(window_row(index, window) | values)
        mean = window_score(spec.name, "kl_mean", rows, higher=False)
        top = window_score(spec.name, "top1_agreement", rows, higher=True)
        every_token = np.concatenate([window.kl for window in losses])
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
