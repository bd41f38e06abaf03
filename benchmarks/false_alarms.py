"""How often does the gate alarm on identical code with fresh calibration draws, for real?

    python -P benchmarks/false_alarms.py [--draws 12] [--comparisons 100] [--out DIR] [--json FILE]

GPTQ runs the gate's grid on so many draws, once. Every comparison takes two disjoint sets of four
of them at random, one as base and one as candidate, as two runs of the same code with fresh seeds
would have. Comparisons share draws with each other, and all share the items, so they are not
independent: a hundred of them say less than a hundred pairs of runs. What is done already in DIR is
taken from there, such as the draws of `benchmarks/planted_faults.py`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qbench.commands.main import run_grid
from qbench.commands.sides import read_side
from qbench.comparison.matching import Side
from qbench.comparison.verdicts import Verdict, compare
from qbench.experiment.grid import parse_set
from qbench.experiment.grid_file import read_grid
from qbench.records import Record
from qbench.stats.sequential import Look, looks

METHOD = "gptq"
DRAWS = 4  # of a side, as the gate has them
SCHEDULES = {
    "four draws, looks after 2, 3 and 4": looks(DRAWS),
    "four draws, one look": (Look(DRAWS),),
    "one draw": (Look(1),),
}


def main() -> None:
    """Run what is missing, and print and store what the comparisons said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--comparisons", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], help="as in `qbench run`")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--no-run", action="store_true", help="judge what is there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.no_run:
        flags = {
            "preset": "gate",
            "model": (options.model,),
            "data": "mini",
            "bits": (3,),
            "methods": ("none", METHOD),
            "replicates": options.draws,
            "jobs": options.jobs,
            "out": options.out,
            "set": parse_set(options.set),
        }
        run_grid(read_grid(None, flags))
    side, _ = read_side(str(options.out), Path("baselines"))
    records = [record for record in side.records if record.status == "ok"]
    unquantized = [record for record in records if record.cell.method == "none"]
    draws = sorted((r for r in records if r.cell.method == METHOD), key=lambda r: r.cell.seed)
    if len(draws) < 2 * DRAWS:
        raise SystemExit(f"{len(draws)} draws are here, and two sides of {DRAWS} take 8 or more")
    generator = np.random.default_rng(0)
    orders = [generator.permutation(len(draws)) for _ in range(options.comparisons)]
    lines = []
    for name, schedule in SCHEDULES.items():
        verdicts = []
        for order in orders:
            chosen = [draws[place] for place in order]
            sides = (chosen[:DRAWS], chosen[DRAWS : 2 * DRAWS])
            verdicts.append(judged(sides, unquantized, options.out, schedule))
        lines.append(line(name, verdicts))
        print(lines[-1], flush=True)
    if options.json:
        body = {
            "command": f"--draws {options.draws} --comparisons {options.comparisons}",
            "model": draws[0].cell.model,
            "cell": draws[0].cell.label,
            "draws": len(draws),
            "hardware": draws[0].environment.get("hardware"),
            "comparisons": lines,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")


def judged(
    sides: tuple[Sequence[Record], Sequence[Record]],
    unquantized: Sequence[Record],
    folder: Path,
    schedule: Sequence[Look],
) -> Verdict:
    """The verdict at the look that decides, or at the last."""
    for look in schedule:
        both = []
        for name, records in zip(("base", "candidate"), sides, strict=True):
            renamed = [renumbered(record, k) for k, record in enumerate(records[: look.draws])]
            both.append(Side(name, folder, (*renamed, *unquantized)))
        verdict = compare(both[0], both[1], look=look)
        if verdict.outcome != "undecided":
            break
    return verdict


def renumbered(record: Record, seed: int) -> Record:
    """The record as if that were its seed: base and candidate are matched by seeds."""
    return record.model_copy(update={"cell": record.cell.model_copy(update={"seed": seed})})


def line(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Outcomes, and how often an interval leaves no difference out."""
    apart: Counter[str] = Counter()
    made = 0
    for verdict in verdicts:
        (cell,) = verdict.cells
        made += cell.findings[0].harm.draws
        for entry in cell.findings:
            apart[entry.endpoint.name] += not entry.harm.low <= 0 <= entry.harm.high
    return {
        "how": name,
        "comparisons": len(verdicts),
        "outcomes": dict(Counter(verdict.outcome for verdict in verdicts)),
        "intervals without 0": dict(apart),
        "draws made": made / len(verdicts),
    }


if __name__ == "__main__":
    main()
