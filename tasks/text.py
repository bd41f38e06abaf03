"""What the tasks on running text have in common: their protocol. Their pass is `window_pass`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from qbench.errors import require_at_least
from qbench.records import Score, TaskSpec
from qbench.tasks.declaration import Declaration
from qbench.tasks.scores import mean_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbench.tasks.data import Source
    from qbench.tasks.window_pass import WindowLosses

LENGTH = 2048
BETWEEN = "\n\n"  # joins the texts, as in `qbench.calibration.windows`, which needs torch


class TextTask(Declaration):
    """A task on non-overlapping windows of a text.

    window: tokens in each, unless others are asked. between: what joins the texts.
    """

    window: int = LENGTH
    between: str = BETWEEN
    kind: Literal["text"] = "text"
    batch_size: int | None = 1  # or as many short windows as are faster together

    def spec(
        self,
        source: Source,
        limit: int | None = None,
        num_fewshot: int | None = None,
        length: int | None = None,
        generate: int | None = None,
        spread: int | None = None,
    ) -> TaskSpec:
        """`limit` windows of `length` tokens of the source's text, by default of `window`.

        They are the first ones, or at most `spread` of each article.
        """
        require_at_least(f"{self.name}.limit", limit, instead=", or 'all'")
        require_at_least(f"{self.name}.length", length, least=2)
        require_at_least(f"{self.name}.spread", spread)
        return TaskSpec(
            name=source.task_name(self.name),
            data=source.table_name(self.table_name),
            sha256=source.sha256(self.table_name),
            limit=limit,
            length=length or self.window,
            spread=spread,
        )

    def texts(self, source: Source) -> Sequence[str]:
        """What is cut into windows."""
        return source.text(self.table_name)


def window_row(index: int, window: WindowLosses) -> dict[str, Any]:
    """What says which window a row of the samples is about, and of which article it is."""
    row: dict[str, Any] = {"doc_id": index, "filter": "none", "doc_hash": window.digest}
    if window.article is not None:
        row["cluster"] = window.article
    return row


def window_score(task: str, metric: str, rows: Sequence[dict[str, Any]], *, higher: bool) -> Score:
    """The mean over windows; its standard error takes windows of one article together."""
    clusters = [row.get("cluster", row["doc_id"]) for row in rows]
    values = [row[metric] for row in rows]
    return mean_score(task, metric, values, higher=higher, clusters=clusters)
