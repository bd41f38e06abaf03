"""Runs that are killed, run in pairs and find damage.

    PYTHONPATH=benchmarks python -P -m abuse [--kills 20] [--pairs 5] [--no-damage] [--cold]
        [--seed 0] [--json FILE]

A small grid on a random tiny model is run undisturbed. Then it is killed at random moments, by each
of several signals, and resumed until it is complete; run twice at once on one folder; and given
every kind of damaged artifact. The final table must be the undisturbed one each time, no record may
have been lost or put into quarantine, and nothing may be left over. Exit code 1 otherwise.

Runs are forked from this process, which has imported all that they need; with --cold each is a
command of its own, as a user gives it, and takes ten times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from abuse.bench import Bench, Run, Table, table
from abuse.damage import DAMAGES
from qbench.environment import environment
from qbench.experiment.store import Store

KINDS = ("Ctrl-C", "the runner", "all at once", "SIGTERM")  # of kills


def kill(bench: Bench, run: Run, how: str) -> bool:
    """End a run in one way; whether that was before it had ended by itself."""
    if run.code is not None:
        return False
    if how == "all at once":
        family = [run.pid, *(child.pid for child in psutil.Process(run.pid).children(True))]
        for member in family:
            _send(member, signal.SIGKILL)
    elif how == "Ctrl-C":  # the terminal sends it to the group
        _send(-run.pid, signal.SIGINT)
    else:
        _send(run.pid, signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    if not run.wait(120):
        bench.expect(False, f"a run did not end within 120 s of {how}")
        _send(run.pid, signal.SIGKILL)
        run.wait()
    return True


def _send(target: int, what: signal.Signals) -> None:
    """To a process, or to a group where the number is negative; it may be gone."""
    try:
        os.kill(target, what)
    except ProcessLookupError:
        return


def kills(bench: Bench, count: int, done: Counter[str]) -> None:
    """Kill runs at random moments until `count` were hit; each folder is resumed to its end."""
    number = 0
    while done.total() < count:
        number += 1
        out = bench.scratch / f"killed-{number}"
        hit = killed(bench, out, bench.random.randint(1, 4))
        done.update(hit)
        # What a killed runner has started ends with it, but not in the same instant.
        time.sleep(0.2)
        code, text = bench.run(out)
        bench.expect(code == 0, f"{out.name}: exit code {code} after kills: {text[-500:]}")
        bench.expect_undisturbed(out, out.name)
        print(
            f"killed  {done.total()} of {count}: {', '.join(hit) or 'none in time'}; resumed in "
            f"{bench.seconds:.1f} s",
            flush=True,
        )
        if not bench.problems:
            shutil.rmtree(out)


def killed(bench: Bench, out: Path, times: int) -> list[str]:
    """Kill a run so many times, and start it again after each but the last; how it was killed."""
    hit: list[str] = []
    kept: Table = {}
    for _ in range(times):
        run = bench.start(out)
        run.wait(bench.random.uniform(0.05, 0.9) * bench.seconds)
        how = bench.random.choice(KINDS)
        if not kill(bench, run, how):
            break
        hit.append(how)
        if (out / "records").is_dir():
            now = table(out)
            lost = [name for name, row in kept.items() if now.get(name) != row]
            bench.expect(not lost, f"{out.name}: records {lost} were lost by {how}")
            kept = now
    return hit


def pairs(bench: Bench, count: int) -> int:
    """Two runners on one folder, the second a random moment later; how many there were."""
    for number in range(count):
        out = bench.scratch / f"pair-{number}"
        first = bench.start(out)
        first.wait(bench.random.uniform(0, 0.7) * bench.seconds)
        second = bench.start(out)
        texts = []
        for run in (first, second):
            run.wait()
            texts.append(run.text())
        codes = [first.code, second.code]
        bench.expect(codes == [0, 0], f"{out.name}: exit codes {codes}: {texts[0]} {texts[1]}")
        shown = [text[text.find("unquantized") : text.find("Note:")] for text in texts]
        bench.expect(shown[0] == shown[1], f"{out.name}: the two show other tables")
        bench.expect_undisturbed(out, out.name)
        print(f"pair    {number + 1} of {count}", flush=True)
        if not bench.problems:
            shutil.rmtree(out)
    return count


def damages(bench: Bench) -> int:
    """Every kind of damage to one artifact, whose cell has no record: redone, and said."""
    for name, damage in DAMAGES.items():
        out = bench.scratch / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bench.finished, out)
        quantized = [record for record in Store(out).read_records()[0] if record.cell.scheme]
        victim = bench.random.choice(quantized)
        (out / "records" / f"{victim.id}.json").unlink()
        damage(out / "artifacts" / victim.cell.artifact)
        code, text = bench.run(out)
        bench.expect(code == 0, f"{name}: exit code {code}: {text[-500:]}")
        bench.expect(text.count("quantized again") == 1, f"{name}: was not said: {text[-500:]}")
        bench.expect_undisturbed(out, name)
        print(f"damage  {name}", flush=True)
    return len(DAMAGES)


def main() -> int:
    """Run what is asked for, print the figures, and say whether all went well."""
    parser = argparse.ArgumentParser("abuse", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--no-damage", action="store_true")
    parser.add_argument("--cold", action="store_true", help="start every run as a user does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="written after each of the three parts")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before any process is forked
    figures: dict[str, Any] = {"environment": environment(), "cold": options.cold}
    with tempfile.TemporaryDirectory(prefix="qbench-abuse-") as scratch:
        bench = Bench(Path(scratch), options.seed, not options.cold)
        figures["problems"] = bench.problems

        def note(name: str, value: Any) -> None:
            figures[name] = value
            figures["runs"] = bench.runs
            if options.json:
                options.json.write_text(json.dumps(figures, indent=2) + "\n")

        print(f"undisturbed  {len(bench.expected)} cells in {bench.seconds:.1f} s", flush=True)
        note("damages", 0 if options.no_damage else damages(bench))
        note("pairs", pairs(bench, options.pairs))
        done: Counter[str] = Counter()
        kills(bench, options.kills, done)
        note("kills", done)
    counts = f"{done.total()} kills {dict(done)}, {options.pairs} pairs, {figures['damages']} kinds"
    print(f"{counts} of damage in {bench.runs} runs; {len(bench.problems)} problems")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
