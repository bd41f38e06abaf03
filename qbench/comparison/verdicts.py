"""The verdict on a candidate: comparable or not, and then better, same, worse or undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from qbench.comparison.changed_answers import Change, flips
from qbench.comparison.comparable import draws_differ, shared_items, tasks_lacking
from qbench.comparison.costs import Cost, costs, elsewhere, measured_once, other_machines, watched
from qbench.comparison.endpoints import MARGINS, Endpoint, endpoints, values
from qbench.comparison.engine import engine_reasons
from qbench.comparison.matching import Match, Side, matched
from qbench.comparison.needed import needed
from qbench.comparison.pairs import Pairs, score_of
from qbench.comparison.samples import Items
from qbench.records import Record
from qbench.stats.difference import Difference
from qbench.stats.flips import Flips
from qbench.stats.power import detectable
from qbench.stats.replicates import MeanSquares
from qbench.stats.sequential import ALPHA, ONE_LOOK, Look
from qbench.stats.verdict import Word, judge

Status = Literal["compared", "not comparable", "missing", "failed"]
Outcome = Literal["pass", "worse", "undecided", "not comparable"]
EXIT = {"pass": 0, "undecided": 0, "worse": 1, "not comparable": 2}
NO_DRAWS = "noise of draws is not included: one draw stands for the method (--replicates 4)"


@dataclass(frozen=True)
class Finding:
    """The finding about one endpoint of one cell.

    base, candidate: the scores, means over draws. harm: how much worse the candidate is. word,
    p_value: the verdict, and the p-value of the claim that it makes, adjusted over all findings.
    detectable: the smallest harm that is found with 80 %. needed: what would decide it, in words.
    flips: of all draws. changes: of the first one.
    """

    endpoint: Endpoint
    base: float
    candidate: float
    harm: Difference
    word: Word
    p_value: float
    detectable: float
    needed: str
    flips: Flips | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class CellVerdict:
    """What is said about one cell. reasons: why it was not compared. costs: by name.

    notes: what a reader must know, such as that one draw stands for the method.
    """

    model: str
    label: str
    status: Status
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """A look that was taken: after how many draws, at which level, and what the verdict was.

    level: of its intervals; it claims what has a p-value of at most 1 - level.
    """

    draws: int
    level: float
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """What is said about the candidate. base, candidate: as they were named.

    level: of the intervals. looks: those that were taken while the draws were made, where there
    were several to take; draws: how many draws there were to be.
    """

    base: str
    candidate: str
    cells: tuple[CellVerdict, ...]
    level: float = ONE_LOOK.level
    looks: tuple[Looked, ...] = ()
    draws: int = 0

    @property
    def outcome(self) -> Outcome:
        """`worse` where anything is; `pass` where all endpoints of all cells pass."""
        words = [finding.word for cell in self.cells for finding in cell.findings]
        if "worse" in words:
            return "worse"
        if not words or any(cell.status != "compared" for cell in self.cells):
            return "not comparable"
        return "undecided" if "undecided" in words else "pass"

    @property
    def stopped(self) -> str:
        """Why no more draws were made, or that more are due; empty where no look was taken before
        the end.
        """
        if not self.looks:
            return ""
        draws, outcome = self.looks[-1].draws, self.looks[-1].outcome
        if draws == self.draws:
            return f"all {draws} draws were made"
        if outcome == "undecided":
            return f"undecided after {draws} of {self.draws} draws: further draws are due"
        why = "nothing can be compared" if outcome == "not comparable" else "the verdict is in"
        return f"stopped after {draws} of {self.draws} draws: {why}"


@dataclass(frozen=True)
class _Measured:
    """An endpoint of a cell before all are judged together.

    is_all: whether the data are known to give no more items than were asked.
    """

    endpoint: Endpoint
    base: float
    candidate: float
    harm: Difference
    spread: MeanSquares | None
    flips: Flips | None
    changes: tuple[Change, ...]
    is_all: bool = False


def compare(
    base: Side,
    candidate: Side,
    margins: Mapping[str, float] = MARGINS,
    tasks: Sequence[str] | None = None,
    allowed: Sequence[str] = (),
    look: Look = ONE_LOOK,
) -> Verdict:
    """Compare every cell of the candidate with its counterpart of the base.

    margins: by metric, see `endpoints`. tasks: those that count, None for all. allowed: what may
    differ between the two. look: how many draws count, and the share of the errors that this
    comparison may spend, where it is one of several. ConfigError where a side has no cell.
    """
    readers = Pairs(base.records, base.folder), Pairs(candidate.records, candidate.folder)
    engine = engine_reasons(base, candidate, readers, margins, tasks, allowed)
    cells: list[CellVerdict] = []
    measured: list[list[_Measured]] = []
    for match in matched(base, candidate):
        seen = match.first(look.draws)
        cell, measures = _measure(seen, readers, margins, tasks, allowed, look)
        if engine and cell.status == "compared":
            cell, measures = replace(cell, status="not comparable", reasons=tuple(engine)), []
        cells.append(cell)
        measured.append(measures)
    judged = iter(_judge([entry for measures in measured for entry in measures], look))
    verdicts = []
    for cell, measures in zip(cells, measured, strict=True):
        findings = tuple(next(judged) for _ in measures)
        verdicts.append(replace(cell, findings=findings))
    return Verdict(base.name, candidate.name, tuple(verdicts), look.level)


def _measure(
    match: Match,
    readers: tuple[Pairs, Pairs],
    margins: Mapping[str, float],
    tasks: Sequence[str] | None,
    allowed: Sequence[str],
    look: Look,
) -> tuple[CellVerdict, list[_Measured]]:
    """One cell: what was measured of each endpoint, or why it is not compared."""
    cell = CellVerdict(match.model, match.label, "compared")
    lost = _lost(match)
    if lost is not None:
        return replace(cell, status=lost[0], reasons=(lost[1],)), []
    draws = match.draws()
    reasons = draws_differ(draws, allowed, tasks) + match.lacking(look.draws)
    measures: list[_Measured] = []
    notes = [NO_DRAWS] if match.is_random and len(draws) == 1 else []
    notes += match.notes()
    deciding = [] if reasons else endpoints(*draws[0], margins, tasks)
    if not reasons:
        reasons += tasks_lacking(deciding, draws[0], tasks or ())
    for endpoint in deciding:
        items, why = shared_items(endpoint, draws, readers)
        reasons += why
        if items is not None:
            refusal = endpoint.refusal(*values(*items))
            if refusal is None:
                measures.append(_of_endpoint(endpoint, draws, *items, look))
            else:
                notes.append(f"{endpoint.name} decides nothing: {refusal}")
    if not deciding and not reasons:
        reasons.append(f"no score has a margin; margins are for {', '.join(margins)}")
    if reasons:
        unique = tuple(dict.fromkeys(reasons))
        return replace(cell, status="not comparable", reasons=unique), []
    known = costs(draws)
    notes += other_machines(draws) + elsewhere(draws)
    notes += measured_once(draws, known) + watched(draws, known)
    return replace(cell, costs=known, notes=tuple(notes)), measures


def _lost(match: Match) -> tuple[Status, str] | None:
    """Why a cell cannot be compared at all: a side lacks it, or it has no scores."""
    sides = (("base", match.base), ("candidate", match.candidate))
    for name, side in sides:
        if not side:
            return "missing", f"the {name} has no such cell"
    for name, side in sides:
        for record in side.values():
            if record.status != "ok":
                return "failed", f"the {name} {record.status}: {record.reason or 'no reason given'}"
    return None


def _of_endpoint(
    endpoint: Endpoint,
    draws: Sequence[tuple[Record, Record]],
    base: list[Items],
    candidate: list[Items],
    look: Look,
) -> _Measured:
    """One endpoint over all draws."""
    tables = values(base, candidate)
    clusters = base[0].clusters if base[0].clustered else None
    flipped: Flips | None = None
    changes: list[Change] = []
    if endpoint.counts_answers:
        flipped, changes = flips(base, candidate)
    scores = []
    for side in (0, 1):
        measures = [score_of(pair[side], endpoint.key) for pair in draws]
        scores.append(sum(entry.value for entry in measures if entry is not None) / len(draws))
    return _Measured(
        endpoint,
        scores[0],
        scores[1],
        endpoint.harm(*tables, clusters, look, _identical(endpoint, draws)),
        endpoint.spread(*tables, clusters),
        flipped,
        tuple(changes),
        _is_all(endpoint, draws[0][0], len(base[0].keys)),
    )


def _is_all(endpoint: Endpoint, record: Record, items: int) -> bool:
    """Whether a task asked all items that its data give, as its limits tell."""
    task, metric, _ = endpoint.key
    for spec in record.cell.tasks:
        if spec.name == task:
            limits = [spec.limit, spec.generate if metric == "exact_match" else None]
            return all(limit is None or items < limit for limit in limits)
    return False


def _identical(endpoint: Endpoint, draws: Sequence[tuple[Record, Record]]) -> bool:
    """Whether the items of a task are the same in both records of every draw, by their hashes.

    Not so where answers are written: unlike models may write the same texts.
    """
    if endpoint.key[1] == "exact_match":
        return False
    for records in draws:
        known = [record.evaluation.get(endpoint.key[0], {}) for record in records]
        hashes = [facts.get("samples_sha256") for facts in known]
        if hashes[0] is None or hashes[0] != hashes[1]:
            return False
    return True


def _judge(measured: Sequence[_Measured], look: Look) -> list[Finding]:
    """The words of all endpoints of all cells, adjusted together."""
    margins = [entry.endpoint.margin for entry in measured]
    judged = judge([entry.harm for entry in measured], margins, look.share)
    findings = []
    for entry, verdict in zip(measured, judged, strict=True):
        claim = verdict.p_better if verdict.word == "better" else verdict.p_worse
        more = ""
        if verdict.word == "undecided":
            more = needed(entry.endpoint, entry.harm, entry.spread, entry.is_all)
        findings.append(
            Finding(
                endpoint=entry.endpoint,
                base=entry.base,
                candidate=entry.candidate,
                harm=entry.harm,
                word=verdict.word,
                p_value=claim,
                detectable=detectable(entry.harm.stderr, entry.harm.degrees, ALPHA * look.share),
                needed=more,
                flips=entry.flips,
                changes=entry.changes,
            )
        )
    return findings
