"""Which cells of a grid are in the plan: those that patterns name, and not too many.

A pattern is a glob (`*`, `?`, `[23]`, case matters). It means the cells whose method (`gptq`), bits
(`3b`), label (`gptq 3b g64 damp=0.1`), model, or id it matches as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.records import Cell

SHOWN = 12  # labels in a message


def select(grid: Grid, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that `only` names and `skip` does not, at most `max_cells`, in their order.

    ConfigError for a pattern that no cell of the grid matches, and where none is left.
    """
    for flag, patterns in (("--only", grid.only), ("--skip", grid.skip)):
        for pattern in patterns:
            if not any(matches(cell, pattern) for cell in cells):
                raise ConfigError(f"{flag} {pattern!r} matches no cell; {_labels(cells)}")
    chosen = [
        cell
        for cell in cells
        if (not grid.only or any(matches(cell, pattern) for pattern in grid.only))
        and not any(matches(cell, pattern) for pattern in grid.skip)
    ]
    if not chosen:
        raise ConfigError(f"--only and --skip leave no cell; {_labels(cells)}")
    return tuple(chosen[: grid.max_cells])


def matches(cell: Cell, pattern: str) -> bool:
    """Whether a pattern means a cell."""
    names = [cell.method, cell.label, cell.model, cell.id]
    if cell.scheme is not None:
        names.append(f"{cell.scheme.width}b")
    return any(fnmatchcase(name, pattern) for name in names)


def _labels(cells: Sequence[Cell]) -> str:
    labels = list(dict.fromkeys(cell.label for cell in cells))
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return f"the cells are {', '.join(labels[:SHOWN])}{more}"
