"""A verdict as people and programs read it: lines, Markdown, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from qbench.comparison.changed_answers import Change
from qbench.comparison.digits import places_of
from qbench.comparison.endpoints import Endpoint
from qbench.comparison.pairs import TIMES
from qbench.comparison.verdicts import CellVerdict, Finding, Verdict
from qbench.outside_text import markdown as escaped
from qbench.outside_text import markdown_table

HEADINGS = ("verdict", "cell", "score", "base", "candidate", "worse by", "margin", "p", "needs")
SENTENCES = {
    "pass": "No endpoint is worse by its margin or more.",
    "worse": "At least one endpoint is worse by more than its margin.",
    "undecided": "Nothing is worse beyond its margin for sure, and not every endpoint passes.",
    "not comparable": "Some of what was to be compared could not be.",
}


def explanation(verdict: Verdict) -> str:
    """What the columns of the table are."""
    looks = " and for the looks" if verdict.looks else ""
    return (
        "Worse by: the paired difference on the same items, positive where the candidate is worse, "
        f"with its {_percent(verdict.level)} interval ({TIMES}: a factor). worse: the interval is "
        "above the margin. same: it is below. better: it is below no difference. p: of that claim, "
        f"adjusted by Holm over all rows{looks}; for others, of being worse."
    )


def with_models(verdict: Verdict) -> Verdict:
    """The verdict with the model in front of every label, where it has several models.

    And of every note that is not of all of them.
    """
    notes: dict[str, set[str]] = {}
    for cell in verdict.cells:
        notes.setdefault(cell.model, set()).update(cell.notes)
    if len(notes) < 2:
        return verdict
    shared = set.intersection(*notes.values())
    cells = []
    for cell in verdict.cells:
        said = [note if note in shared else f"{cell.model}: {note}" for note in cell.notes]
        cells.append(replace(cell, label=f"{cell.model} {cell.label}", notes=tuple(said)))
    return replace(verdict, cells=tuple(cells))


def fields(cell: CellVerdict, finding: Finding) -> list[str]:
    """One row under HEADINGS."""
    endpoint = finding.endpoint
    return [
        finding.word,
        cell.label,
        endpoint.name,
        _score(endpoint, finding.base),
        _score(endpoint, finding.candidate),
        harm_text(finding),
        _margin(endpoint),
        p_text(finding.p_value),
        finding.needed,
    ]


def harm_text(finding: Finding) -> str:
    """`×1.021 [1.008, 1.034]` or `+1.5 [0.2, 2.8]`: how much worse the candidate is."""
    harm, endpoint = finding.harm, finding.endpoint
    ends = [_amount(endpoint, value).lstrip(TIMES) for value in (harm.low, harm.high)]
    return f"{_amount(endpoint, harm.value)} [{', '.join(ends)}]"


def p_text(p_value: float) -> str:
    """Two digits, and no more zeros than one reads."""
    if p_value < 0.0001:
        return "<.0001"
    return f"{p_value:.2g}"


def look_lines(verdict: Verdict) -> list[str]:
    """What was seen while the draws were made, a line for each look, and why they ended."""
    lines = []
    for look in verdict.looks:
        lines.append(
            f"look after {look.draws} of {verdict.draws} draws, {_percent(look.level)} intervals: "
            f"{look.outcome}"
        )
    return [*lines, verdict.stopped] if lines else []


def lost_line(cell: CellVerdict) -> str:
    """A cell that was not compared, and why."""
    return f"{cell.status}  {cell.label}  {'; '.join(cell.reasons)}"


def cost_lines(cell: CellVerdict) -> list[str]:
    """`bits per weight 3.25 -> 3.25 (x1.00)`, a line for each that is known."""
    lines = []
    for name, cost in cell.costs.items():
        line = f"{name} {cost.base:.4g} -> {cost.candidate:.4g}"
        if cost.ratio is not None:
            value, low, high = cost.ratio
            ends = f"{low:.2f}", f"{high:.2f}"
            interval = f" [{', '.join(ends)}]" if ends[0] != ends[1] else ""
            line += f" ({TIMES}{value:.2f}{interval})"
        lines.append(line)
    return lines


def flip_lines(finding: Finding) -> list[str]:
    """How many answers changed, and each that is listed."""
    tally = finding.flips
    if tally is None:
        return []
    draws = finding.harm.draws
    several = f" in {draws} draws" if draws > 1 else ""
    head = (
        f"{finding.endpoint.name}: of {tally.items} answers{several} {tally.lost} became wrong, "
        f"{tally.gained} right, {tally.moved} wrong in another way"
    )
    if several and finding.changes:
        head += "; of the first draw"
    return [head, *(_change_line(change) for change in finding.changes)]


def markdown(verdict: Verdict) -> str:
    """A comment for a pull request: the verdict, the table, what changed, what it costs."""
    verdict = with_models(verdict)
    parts = [
        f"## {verdict.outcome}: {escaped(verdict.candidate)} against {escaped(verdict.base)}",
        SENTENCES[verdict.outcome],
    ]
    rows = [fields(cell, finding) for cell in verdict.cells for finding in cell.findings]
    if rows:
        shown = []
        for word, *others in rows:
            shown.append([f"**{escaped(word)}**", *map(escaped, others)])
        parts += [markdown_table(HEADINGS, shown, left=3), explanation(verdict)]
    if verdict.looks:
        parts.append("\n".join(f"- {line}" for line in look_lines(verdict)))
    lost = [f"- {escaped(lost_line(c))}" for c in verdict.cells if c.status != "compared"]
    if lost:
        parts.append("\n".join(lost))
    notes = dict.fromkeys(note for cell in verdict.cells for note in cell.notes)
    if notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in notes))
    costs = [
        f"- {escaped(cell.label)}: {escaped(', '.join(cost_lines(cell)))}"
        for cell in verdict.cells
        if cell.costs
    ]
    if costs:
        parts += ["### Costs", "\n".join(costs)]
    changed = _changed(verdict)
    if changed:
        parts += ["<details><summary>Answers that changed</summary>", changed, "</details>"]
    return "\n\n".join(parts) + "\n"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The whole verdict, JSON-able; numbers that are not finite are None."""
    body = _plain(asdict(verdict))
    assert isinstance(body, dict)
    return {"outcome": verdict.outcome, "stopped": verdict.stopped, **body}


def _changed(verdict: Verdict) -> str:
    lines = []
    for cell in verdict.cells:
        for finding in cell.findings:
            for index, line in enumerate(flip_lines(finding)):
                prefix = f"- {escaped(cell.label)}, " if index == 0 else "  - "
                lines.append(f"{prefix}{escaped(line)}")
    return "\n".join(lines)


def _change_line(change: Change) -> str:
    text = f" {change.text}" if change.text else ""
    return (
        f"{change.kind}: item {change.item}{text}; answered {change.before!r}, now "
        f"{change.after!r}, right is {change.target!r}"
    )


def _percent(level: float) -> str:
    return f"{100 * level:.4g} %"


def _score(endpoint: Endpoint, value: float) -> str:
    return f"{100 * value:.1f} %" if endpoint.unit == "points" else f"{value:.4g}"


def _margin(endpoint: Endpoint) -> str:
    """With two digits at least, since rounding could take a small one away."""

    def written(margin: float, places: int, whole: float = 0.0) -> str:
        return f"{whole + margin:.{max(places, places_of(margin, 2))}f}"

    if endpoint.unit == "log ratio":
        return f"{TIMES}{written(math.expm1(min(endpoint.margin, 700.0)), 2, whole=1.0)}"
    if endpoint.unit == "points":
        return f"+{written(100 * endpoint.margin, 1)}"
    return f"+{written(endpoint.margin, 3)}"


def _amount(endpoint: Endpoint, value: float) -> str:
    """A harm in the endpoint's unit; what three places would make 0 has two digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if endpoint.unit == "log ratio":
        factor = math.exp(min(value, 700.0))
        return f"{TIMES}{factor:.3f}" if 0.1 <= factor < 10 else f"{TIMES}{factor:.3g}"
    if endpoint.unit == "points":
        return f"{100 * value:+.1f}"
    return f"{value:+.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:+.2g}"


def _plain(value: Any) -> Any:
    """What `asdict` gives, JSON-able and without what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
