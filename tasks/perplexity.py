"""Perplexity per token of WikiText-2, or of the data source's own text.

It follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323): the texts joined by blank lines, tokenised
once (BOS only where the tokenizer puts it, at the start), cut into non-overlapping windows of
`length` tokens, the tail dropped; exp of the mean over windows of the mean negative log-likelihood
of their length - 1 predictions. With `spread` the windows are of many articles, a few of each
(`qbench.tasks.article_windows`). It is a number per token: compare it only at the same tokenizer,
`length`, `spread` and text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.tasks.contract import Context, Outcome
from qbench.tasks.declaration import Cost, DeclaredScore, Table
from qbench.tasks.scores import perplexity_score
from qbench.tasks.text import TextTask, window_row, window_score

if TYPE_CHECKING:
    from qbench.records import TaskSpec


class Perplexity(TextTask):
    """Perplexity of the model itself."""

    name: str = "wikitext"
    about: str = (
        "perplexity per token on WikiText-2, non-overlapping windows (the GPTQ paper's convention)"
    )
    table: Table | str = Table(
        folder="wikitext2/raw_v1",
        splits=("test",),
        columns=("text",),
        repository="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        licence="CC BY-SA 3.0 / GFDL",
        running_text=True,
        example={"text": " = A title = \n"},
    )
    cost: Cost = Cost(items=140, pass_share=0.5)
    scores: tuple[DeclaredScore, ...] = (
        DeclaredScore(metric="perplexity", better="lower", headline=True, screen="ppl"),
        DeclaredScore(metric="nll", better="lower"),
    )
    order: int = 10

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `perplexity` (standard error by the delta method) and `nll`; a row per window."""
        from qbench.tasks.window_pass import measure

        losses = measure(context, spec, self.table_name)
        rows = [window_row(i, window) | {"nll": window.nll} for i, window in enumerate(losses)]
        nll = window_score(spec.name, "nll", rows, higher=False)
        return Outcome((perplexity_score(nll), nll), rows)
