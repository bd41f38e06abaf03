"""Does the gate find faults that were planted in GPTQ, and leave alone what has none?

    python -P benchmarks/planted_faults.py [--out DIR] [--faults NAMES] [--quick] [--json FILE]
    python -P benchmarks/planted_faults.py --checks [--json FILE]

Every method of `faulty_methods.py` runs the gate's grid beside GPTQ as by `qbench regress`, and
ends as early as that does. What is done already in DIR is taken from there, so GPTQ runs once.
--checks needs no model: which faults the contract checks catch, that come before. In FILE the lines
of other faults stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qbench.checks.isolation import check_isolated
from qbench.commands.gated import Gate
from qbench.commands.main import run_grid
from qbench.commands.variants import Variant
from qbench.comparison.written import harm_text
from qbench.experiment.grid import parse_set
from qbench.experiment.grid_file import read_grid
from qbench.experiment.store import read_records
from qbench.records import Record

HERE = Path(__file__).resolve().parent
FAULTS = HERE / "faulty_methods.py"
NAME = re.compile(r'^    name: ClassVar\[str\] = "([\w-]+)"', re.MULTILINE)
BASE = "gptq"
CORES = 2
CHECK_SECONDS = 600.0  # for one contract check, so that a busy machine is no fault
QUICK = (
    "calibration.samples=8",
    "calibration.length=192",
    "wikitext.limit=24",
    "wikitext.spread=1",
    "wikitext.length=128",
    "divergence.limit=24",
    "divergence.spread=1",
    "divergence.length=128",
)


def main() -> None:
    """Judge what was asked for, and print and store a line for each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="default runs/faults")
    parser.add_argument("--faults", help="names, with commas; default all")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="short windows, text alone")
    parser.add_argument("--set", action="append", default=[], help="as in `qbench run`")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--checks", action="store_true", help="the contract checks alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.out is None:
        options.out = Path("runs/faults-quick" if options.quick else "runs/faults")
    names = NAME.findall(FAULTS.read_text())
    if options.faults:
        names = options.faults.split(",")
    if options.checks:
        keep(options.json, "checks", checked(names), {"command": "--checks"})
        return
    for name in names:
        line = judged(name, options)
        print(f"{line['fault']:26} {line['outcome']:10} after {line['draws']} draws, ", end="")
        print(f"{line['minutes on two cores']:.1f} min  {line['worse by']}", flush=True)
        facts = {
            "command": f"--draws {options.draws}{' --quick' * options.quick}",
            "model": options.model,
            "hardware": line.pop("hardware"),
        }
        keep(options.json, "faults", [line], facts)


def judged(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The verdict on one fault against GPTQ, and what it cost."""
    flags = {
        "preset": "gate",
        "model": (options.model,),
        "data": "mini",
        "bits": (3,),
        "methods": ("none", BASE, name),
        "plugin": (FAULTS,),
        "replicates": options.draws,
        "jobs": options.jobs,
        "out": options.out,
        "tasks": ("wikitext", "divergence") if options.quick else None,
        "set": parse_set([*(QUICK if options.quick else ()), *options.set]),
    }
    grid = read_grid(None, {key: value for key, value in flags.items() if value is not None})
    gate = Gate((Variant(BASE, BASE), Variant(name, name)), (BASE, name), True, {})
    run_grid(grid, work=gate.work)
    verdict = gate.verdict
    draws = verdict.looks[-1].draws if verdict.looks else options.draws
    (cell,) = verdict.cells
    records, _ = read_records(options.out)
    seconds = cost(records, (name, BASE), draws)
    return {
        "fault": name,
        "outcome": verdict.outcome,
        "draws": draws,
        "level": verdict.level,
        "stopped": verdict.stopped,
        "worse by": {entry.endpoint.name: harm_text(entry) for entry in cell.findings},
        "words": {entry.endpoint.name: entry.word for entry in cell.findings},
        "minutes on two cores": round(seconds / CORES / 60, 1),
        "reasons": cell.reasons,
        "hardware": records[0].environment.get("hardware"),
    }


def cost(records: Sequence[Record], names: Sequence[str], draws: int) -> float:
    """Seconds of one core for the cells that this comparison took, and the unquantized one."""
    seconds = 0.0
    for record in records:
        if record.cell.method == "none" or (
            record.cell.method in names and record.cell.seed < draws
        ):
            seconds += (record.quantize_seconds or 0) + (record.evaluate_seconds or 0)
    return seconds


def checked(names: Sequence[str]) -> list[dict[str, Any]]:
    """Of every fault, the contract checks that it fails."""
    failed: dict[str, list[str]] = {}
    for verdict in check_isolated(str(FAULTS), CHECK_SECONDS):
        if verdict.subject not in names:
            continue
        of_method = failed.setdefault(verdict.subject, [])
        if verdict.outcome == "FAIL":
            of_method.append(verdict.check)
    lines = []
    for name, checks in failed.items():
        print(f"{name:26} {', '.join(checks) or 'all pass'}", flush=True)
        lines.append({"fault": name, "fails": checks})
    return lines


def keep(path: Path | None, key: str, lines: Sequence[dict[str, Any]], facts: Any) -> None:
    """Store lines under a key, in the place of older ones of the same faults."""
    if path is None:
        return
    body = json.loads(path.read_text()) if path.is_file() else {}
    others = [
        line for line in body.get(key, []) if line["fault"] not in {e["fault"] for e in lines}
    ]
    order = NAME.findall(FAULTS.read_text())
    body[key] = sorted([*others, *lines], key=lambda line: order.index(line["fault"]))
    body[f"{key} by"] = facts
    path.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
