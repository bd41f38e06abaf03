"""What the GPU kernels and the pipeline compute and cost on this machine, section by section.

    make gpu-report, or make gpu-report SECTIONS=correctness,latency

correctness  each kernel against the reference in float64, over bits, groups, formats and rows
dispatch     what products promise beside their rounding: derivatives, autocast, views, graphs
tune         the fastest launches on this GPU, and the table that keeps them
latency      what `qbench latency --device cuda` times, other programs among it
peers        those programs that compile or tune themselves for a minute
training     what a step of the trained methods costs, and which kernels it goes to
pipeline     what quantizing blocks of 8B size costs
end_to_end   a random model of 8B size that writes tokens, packed against dense

A section is a process with a time limit; one that fails or hangs leaves the others as they are.
After each section everything so far is in one JSON file with the hardware's name. Exits 1 where a
section failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from gpu_report.processes import start_server
from gpu_report.sections import SECTIONS, limits_of, report, store

RESULTS = Path(__file__).resolve().parents[1] / "results"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        "gpu_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--sections", default=",".join(SECTIONS), help="names, with commas; by default all"
    )
    flags.add_argument(
        "--limits", default="", help="seconds of sections, such as correctness=40,latency=60"
    )
    flags.add_argument(
        "--quick",
        nargs="?",
        const=",".join(SECTIONS),
        default="",
        metavar="SECTIONS",
        help="a few checks and shapes, in all sections or in these",
    )
    flags.add_argument(
        "--json", type=Path, help="the file to write; else one in benchmarks/results"
    )
    flags.add_argument("--part", metavar="SECTION", help=argparse.SUPPRESS)
    flags.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return flags


def run_part(section: str, path: Path, quick: bool, seconds: float) -> int:
    """This process is one section, which writes to this file: 0 where everything is right.

    seconds: after which it will be ended; it leaves out what would take longer.
    """
    start_server(f"gpu_report.{section}")
    module = importlib.import_module(f"gpu_report.{section}")

    def write(results: Any) -> None:
        store(path, results)

    return 0 if module.run(write, quick, seconds) else 1


def main() -> int:
    """Run the sections one after the other; the exit code."""
    options = parser().parse_args()
    if options.part is not None:
        return run_part(options.part, options.json, bool(options.quick), options.seconds)
    limits = limits_of(options.sections, options.limits)
    from qbench.environment import environment
    from qbench.kernels.gpu.products import unavailable

    reason = unavailable()
    if reason is not None:
        print(f"gpu-report needs an NVIDIA GPU and triton: {reason}")
        return 2
    import torch

    gpu = torch.cuda.get_device_name()
    path = options.json or RESULTS / f"gpu_{gpu.replace(' ', '_')}.json"
    command = [sys.executable, "-P", "-m", "gpu_report"]
    facts = {"gpu": gpu, "environment": environment()}
    failed = report(limits, command, path, facts, options.quick.split(","))
    print(f"written to {os.path.relpath(path)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
