"""Does the gate find faults that were planted in GPTQ, and leave alone what has none?

    python -P benchmarks/planted_faults.py [--out DIR] [--draws 4] [--quick] [--json FILE]

Every method of `faulty_methods.py` runs the gate's grid beside GPTQ, and is judged as by `qbench
regress`. What is done already in DIR is taken from there. --quick: 24 windows of 128 tokens and 8
calibration windows of 192, text alone, which is what the stored figures were made with.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from qbench.comparison.matching import Side, chosen
from qbench.comparison.verdicts import compare
from qbench.comparison.written import harm_text
from qbench.experiment.store import read_records

HERE = Path(__file__).resolve().parent
FAULTS = HERE / "faulty_methods.py"
NAME = re.compile(r'^    name: ClassVar\[str\] = "([\w-]+)"', re.MULTILINE)
QUICK = (
    *("--tasks", "wikitext,divergence", "--set", "calibration.samples=8"),
    *("--set", "calibration.length=192"),
    *(
        word
        for task in ("wikitext", "divergence")
        for key, value in (("limit", 24), ("spread", 1), ("length", 128))
        for word in ("--set", f"{task}.{key}={value}")
    ),
)


def main() -> None:
    """Run what is missing, and print and store a line for each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-run", action="store_true", help="judge what is there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = NAME.findall(FAULTS.read_text())
    if not options.no_run:
        words = ["run", "--preset", "gate", "--bits", "3", "--data", "mini", "--jobs", "1"]
        words += ["--methods", ",".join(["none", "gptq", *names]), "--plugin", str(FAULTS)]
        words += ["--replicates", str(options.draws), "--out", str(options.out)]
        words += QUICK if options.quick else ()
        code = "from qbench.commands.main import main; main()"
        subprocess.run([sys.executable, "-P", "-c", code, *words])
    records, _ = read_records(options.out)
    side = Side(str(options.out), options.out, tuple(records))
    there = {record.cell.method for record in records if record.status == "ok"}
    lines = [judged(side, name) for name in names if name in there]
    for line in lines:
        print(f"{line['fault']:26} {line['outcome']:10} {line['draws']} draws  ", end="")
        print("  ".join(f"{key} {text}" for key, text in line["worse by"].items()))
    if options.json:
        body = {
            "command": f"python -P benchmarks/planted_faults.py --draws {options.draws}"
            + " --quick" * options.quick,
            "model": records[0].cell.model,
            "hardware": records[0].environment.get("hardware"),
            "faults": lines,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")


def judged(side: Side, name: str) -> dict[str, Any]:
    """The verdict on one fault against GPTQ, on the draws that both have."""
    mine = [one for one in side.records if one.cell.method == name]
    seeds = {one.cell.seed for one in mine}
    kept = tuple(one for one in side.records if one.cell.seed in seeds)
    whole = Side(side.name, side.folder, kept)
    verdict = compare(chosen(whole, "gptq"), chosen(whole, name))
    (cell,) = verdict.cells
    cost = [(one.quantize_seconds or 0) + (one.evaluate_seconds or 0) for one in mine]
    return {
        "fault": name,
        "outcome": verdict.outcome,
        "draws": len(seeds),
        "worse by": {one.endpoint.name: harm_text(one) for one in cell.findings},
        "words": {one.endpoint.name: one.word for one in cell.findings},
        "seconds a draw": round(sum(cost) / len(cost)),
        "reasons": cell.reasons,
    }


if __name__ == "__main__":
    main()
