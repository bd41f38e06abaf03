"""Two methods on one small grid, draw by draw, until there is a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.commands.options import say
from qbench.commands.variants import Variant, method_of
from qbench.errors import ConfigError
from qbench.stats.sequential import Look, looks

if TYPE_CHECKING:
    from qbench.comparison.matching import Side
    from qbench.comparison.verdicts import Looked, Verdict
    from qbench.experiment.grid import Grid
    from qbench.experiment.plan import Plan
    from qbench.experiment.store import Store
    from qbench.records import Record

PRESET = "gate"
BITS = (3,)


def judged(
    base: Variant,
    candidate: Variant,
    flags: Mapping[str, Any],
    early: bool = True,
    limits: Mapping[str, Any] | None = None,
) -> Verdict:
    """Run the gate's grid for both methods, and compare the candidate with the base.

    flags: of the grid; they override the gate's own. early: whether the run stops once there is a
    verdict. limits: margins, tasks and allowed, as `compare` takes them. ConfigError where the two
    are one method.
    """
    from qbench.commands.main import run_grid
    from qbench.experiment.grid_checks import check_request

    names = (method_of(base), method_of(candidate))
    refuse_one_method(*names)
    gate = Gate((base, candidate), names, early, limits or {})
    grid = _grid((base, candidate), names, flags)
    check_request(grid, loaded=True)
    run_grid(grid, work=gate.work)
    return gate.verdict


def refuse_request(
    variants: Sequence[Variant], flags: Mapping[str, Any], imported: bool = False
) -> None:
    """ConfigError, ModelError or DataError for flags that the gate's grid cannot have.

    imported: whether the files of methods may be imported already. If not, settings of these
    methods are not checked.
    """
    from qbench.experiment.grid_checks import check_request
    from qbench.models.source import find_model

    known = imported or all(variant.plugin is None for variant in variants)
    names = [method_of(each) if known else each.method or each.text for each in variants]
    if known:
        refuse_one_method(*names)
    grid = _grid(variants, names, flags, imported=known)
    check_request(grid, loaded=known)
    for name in grid.model:
        find_model(name, grid.trust_remote_code)


def refuse_one_method(base: str, candidate: str) -> None:
    """ConfigError where both names of methods are the same; an empty name is not known yet."""
    if base and base == candidate:
        raise ConfigError(
            f"base and candidate are both {base!r}; give one of them as it was at a git revision, "
            f"such as HEAD~1:methods/{base}.py, or under another name"
        )


def judged_alone(variant: Variant, flags: Mapping[str, Any]) -> Side:
    """Run the gate's grid for one method, and return its cells as a side of a comparison."""
    from qbench.commands.main import run_grid, run_plan
    from qbench.comparison.matching import Side
    from qbench.experiment.grid_checks import check_request

    records: list[Record] = []

    def work(plan: Plan, store: Store) -> list[Record]:
        records.extend(run_plan(plan, store))
        return records

    grid = _grid((variant,), [method_of(variant)], flags)
    check_request(grid, loaded=True)
    run_grid(grid, work=work)
    assert grid.out is not None
    return Side(variant.text, grid.out, tuple(records))


def _grid(
    variants: Sequence[Variant],
    names: Sequence[str],
    flags: Mapping[str, Any],
    imported: bool = True,
) -> Grid:
    """The gate's grid for these methods; each state of their files has a folder of its own.

    names: of the methods. imported: whether their files may be imported; if not, their state is not
    known.
    """
    from qbench.experiment.grid_file import read_grid

    settings: dict[str, Any] = {
        "preset": PRESET,
        "bits": BITS,
        "methods": ("none", *names),
        "plugin": tuple(entry.plugin for entry in variants if entry.plugin is not None),
    }
    if imported:
        state = hashlib.sha256(b"".join(variant.state for variant in variants)).hexdigest()[:8]
        settings["out"] = Path("runs") / "regress" / f"{names[-1]}-{state}"
    asked = {key: value for key, value in flags.items() if value is not None}
    return read_grid(None, settings | asked)


@dataclass
class Gate:
    """A run that is judged while it is still going on.

    sides: base and candidate. names: of their methods, as they are run. early: whether it may stop
    before all draws are made. limits: arguments of the comparison. looked: the looks that were
    taken.
    """

    sides: tuple[Variant, Variant]
    names: tuple[str, str]
    early: bool
    limits: Mapping[str, Any]
    looked: list[Looked] = field(default_factory=list)
    _verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict; only after `work`."""
        assert self._verdict is not None
        return self._verdict

    def work(self, plan: Plan, store: Store) -> list[Record]:
        """Make the draws up to each look, until one decides; returns the records of all draws."""
        from qbench.commands.main import run_plan

        first = plan.grid.seed
        draws = max(1, 1 + max(cell.seed for cell in plan.cells) - first)
        schedule = looks(draws) if self.early else (Look(draws),)
        records: list[Record] = []
        with store.at_work():  # what the cells share lasts over all looks
            for look in schedule:
                cells = tuple(cell for cell in plan.cells if cell.seed < first + look.draws)
                records = run_plan(replace(plan, cells=cells), store)
                outcome = self._judge(records, store.folder, look, draws, len(schedule) > 1)
                if outcome != "undecided" or look.last:
                    break
                say(f"look  after {look.draws} of {draws} draws: undecided, so it goes on")
        return records

    def _judge(
        self, records: list[Record], folder: Path, look: Look, draws: int, several: bool
    ) -> str:
        """Judge the present records; returns the outcome. several: whether looks are several."""
        from qbench.comparison.matching import Side
        from qbench.comparison.verdicts import Looked, compare

        sides = []
        for variant, name in zip(self.sides, self.names, strict=True):
            own = tuple(entry for entry in records if entry.cell.method in (name, "none"))
            sides.append(Side(variant.text, folder, own))
        verdict = compare(sides[0], sides[1], look=look, **self.limits)
        if several:
            self.looked.append(Looked(look.draws, look.level, verdict.outcome))
            verdict = replace(verdict, looks=tuple(self.looked), draws=draws)
        self._verdict = verdict
        return verdict.outcome
