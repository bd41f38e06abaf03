"""Perplexity per token of WikiText-2, or of the data source's own text.

It follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323): the texts joined by blank lines, tokenised
once (BOS only where the tokenizer puts it, at the start), cut into non-overlapping windows of
`length` tokens, the tail dropped; exp of the mean over windows of the mean negative log-likelihood
of their length - 1 predictions. With `spread` the windows are of many articles, a few of each
(`qbench.tasks.article_windows`). It is a number per token: compare it only at the same tokenizer,
`length`, `spread` and text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        DeclaredScore(
            metric="perplexity", nature="perplexity", better="lower", headline=True, screen="ppl"
        ),
        DeclaredScore(metric="nll", unit="nats per token", better="lower"),
    )
    order: int = 10

    def evaluate(self, context: Context, spec: TaskSpec) -> Outcome:
        """Scores `perplexity` (standard error by the delta method) and `nll`; a row per window."""
        from qbench.tasks.article_windows import article_windows
        from qbench.tasks.beginnings import text_facts
        from qbench.tasks.window_pass import measure

        texts = context.source.text(self.table_name)
        windows = article_windows(texts, context.tokenizer, spec, self.between)
        losses = measure(context, spec, windows)
        rows = [window_row(i, window) | {"nll": window.nll} for i, window in enumerate(losses)]
        nll = window_score(spec.name, "nll", rows, higher=False)
        facts = text_facts(context.tokenizer, context.model)
        bos = context.tokenizer.bos_token_id
        facts["windows_without_bos"] = sum(window.first != bos for window in losses)
        return Outcome((perplexity_score(nll), nll), rows, facts)


# Frantar et al. evaluate on the first 1,100 validation texts of one shard, joined by a space, of
# which they take 256 windows of 2048 tokens.
C4: dict[str, Any] = {
    "name": "c4",
    "about": "perplexity per token on C4's validation texts, as in the GPTQ paper's code",
    "table": Table(
        folder="c4_validation",
        splits=("validation",),
        columns=("text",),
        repository="allenai/c4",
        config=None,
        licence="ODC-BY",
        running_text=True,
        texts=1100,
        shards={"validation": "en/c4-validation.00000-of-00008.json.gz"},
        example={"text": "A page of the web, with some words about the weather of the day."},
    ),
    "cost": Cost(items=256),
    "between": " ",
    "order": 12,
}


def perplexities() -> list[Perplexity]:
    """WikiText-2 and C4, each in windows of 2048, 4096 and 8192 tokens."""
    tasks = [Perplexity(), Perplexity(**C4)]
    for task in tuple(tasks):
        for window in (4096, 8192):
            changes = {
                "name": f"{task.name}_{window}",
                "about": f"{task.name} in windows of {window} tokens",
                "table": task.name,
                "window": window,
                "order": task.order + 1,
            }
            tasks.append(task.model_copy(update=changes))
    return tasks
