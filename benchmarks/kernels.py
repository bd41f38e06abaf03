"""Products with quantized weights on this CPU: `python -P benchmarks/kernels.py [--threads 1] [--shapes 4096x4096]`.

Cold, interleaved and checked, with the read bandwidth among the candidates; see `qbench/latency.py`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qbench.environment import environment
from qbench.latency import Row, Shape, bandwidth, candidates, reader, threads, time_interleaved
from qbench.peers import peers


def report(rows: list[Row], best: float) -> None:
    """A table: rates of the packed weight, and its share of the best reading seen."""
    medians = {row.name: row.seconds for row in rows}
    print(f"{rows[0].shape}, {rows[0].threads} threads; read {best / 1e9:.1f} GB/s at best")
    print(
        f"{'':26}{'bits':>6}{'error':>9}{'ms':>8}{'10%':>8}{'90%':>8}{'GB/s':>7}{'share':>7}{'x fp32':>8}{'x bf16':>8}"
    )
    for row in rows:
        ratios = "".join(f"{medians[name] / row.seconds:8.2f}" for name in ("dense fp32", "dense bf16"))
        times = "".join(f"{1e3 * value:8.3f}" for value in (row.seconds, row.low, row.high))
        print(f"{row.name:26}{row.bits:6.2f}{row.error:9.1e}{times}{row.rate / 1e9:7.1f}{row.rate / best:7.2f}{ratios}")
    print(flush=True)


def measure(shape: Shape, arguments: argparse.Namespace) -> tuple[list[Row], float]:
    """The rows of one shape, and the best reading of memory before, among and after them, bytes per second."""
    found = [reader(), *candidates(shape, arguments.bits, arguments.group_size, arguments.formats)]
    if arguments.peers:
        others, missing = peers(shape)
        found += others
        for name, reason in missing.items():
            print(f"without {name}: {reason}")
    before = bandwidth(0.5)
    rows = time_interleaved(shape, found, arguments.rounds)
    return rows, max(before, bandwidth(0.5), found[0].nbytes / rows[0].low)


def main() -> None:
    """Print the tables; with --json, write the rows too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default="4096x4096,14336x4096", help="out x in, with commas")
    parser.add_argument("--batch", type=_numbers, default=[1], help="rows of x, with commas")
    parser.add_argument("--bits", type=_numbers, default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=["binary"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--json", type=Path, help="a file for the rows and the machine")
    arguments = parser.parse_args()
    results = []
    with threads(arguments.threads):
        for text in arguments.shapes.split(","):
            for batch in arguments.batch:
                out, columns = map(int, text.split("x"))
                rows, best = measure(Shape(out, columns, batch), arguments)
                report(rows, best)
                results += [asdict(row) | {"read_bandwidth": best} for row in rows]
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "rows": results}, indent=1) + "\n")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
