"""Which cells of a grid are in the plan: those that patterns name, and not too many.

A pattern is a glob (`*`, `?`, `[23]`, case matters). It means the cells whose method (`gptq`), bits
(`3b`), label (`gptq 3b g64 damp=0.1`), model, or id it matches as a whole. A label means all cells
that share it, and one of them with what tells it from the others (`gptq 3b g64 seed=1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.records import Cell, labels

SHOWN = 12  # labels in a message


def select(grid: Grid, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that `only` names and `skip` does not, at most `max_cells`, in their order.

    ConfigError for a pattern that no cell of the grid matches, and where none is left.
    """
    told = labels(cells)
    for flag, patterns in (("--only", grid.only), ("--skip", grid.skip)):
        for pattern in patterns:
            if not any(matches(cell, pattern, told[cell.id]) for cell in cells):
                raise ConfigError(f"{flag} {pattern!r} matches no cell; {_listed(told)}")
    chosen = []
    for cell in cells:
        label = told[cell.id]
        named = not grid.only or any(matches(cell, pattern, label) for pattern in grid.only)
        skipped = any(matches(cell, pattern, label) for pattern in grid.skip)
        if named and not skipped:
            chosen.append(cell)
    if not chosen:
        raise ConfigError(f"--only and --skip leave no cell; {_listed(told)}")
    return tuple(chosen[: grid.max_cells])


def matches(cell: Cell, pattern: str, label: str) -> bool:
    """Whether a pattern means a cell. label: of the cell among all of the grid."""
    names = [cell.method, cell.label, label, cell.model, cell.id]
    if cell.scheme is not None:
        names.append(f"{cell.scheme.width}b")
    # Rules in a label are globs themselves, which `[01]` in a pattern would not match.
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def _listed(told: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(told.values()))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the cells are {', '.join(names[:SHOWN])}{more}"
