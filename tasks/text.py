"""What the tasks on running text have in common: their protocol. Their pass is `window_pass`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from qbench.errors import require_at_least
from qbench.records import TaskSpec
from qbench.tasks.declaration import Declaration

if TYPE_CHECKING:
    from qbench.tasks.data import Source
    from qbench.tasks.window_pass import WindowLosses

LENGTH = 2048


class TextTask(Declaration):
    """A task on non-overlapping windows of a text."""

    kind: Literal["text"] = "text"
    batch_size: int | None = 1  # sums in another order would be other numbers

    def spec(
        self,
        source: Source,
        limit: int | None = None,
        num_fewshot: int | None = None,
        length: int | None = None,
        generate: int | None = None,
    ) -> TaskSpec:
        """The first `limit` windows of `length` tokens of the source's text, 2048 by default."""
        require_at_least("limit", limit)
        require_at_least("length", length, least=2)
        return TaskSpec(
            name=source.task_name(self.name),
            data=source.table_name(self.table_name),
            sha256=source.sha256(self.table_name),
            limit=limit,
            length=length or LENGTH,
        )


def window_row(index: int, window: WindowLosses) -> dict[str, Any]:
    """What says which window a row of the samples is about."""
    return {"doc_id": index, "filter": "none", "doc_hash": window.digest}
