"""Hold the methods that were changed since a revision against what they were there.

    python -P benchmarks/gate.py REVISION [--out runs/gate] [--bits 3] [-- options of qbench run]

Both trees run the same small grid, `qbench run --preset gate`, each with its own code, and `qbench
compare` says whether anything is worse: after some of the draws, and after more of them as long as
that is undecided. Exit code: that of `qbench compare`; 0 where no method that was there has
changed. OUT/comment.md is the comment for a pull request.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOP = ("methods", "kernels", "tasks", "reports")  # folders that are packages of qbench
NAME = re.compile(r'^    name: ClassVar\[str\] = "([\w.-]+)"', re.MULTILINE)


def main() -> int:
    """Run the gate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="what the methods must not be worse than")
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--bits", default="3")
    parser.add_argument("--replicates", type=int, help="draws, at most; default the preset's")
    mine, rest = split(sys.argv[1:])
    options = parser.parse_args(mine)
    if any(word.startswith("--replicates") for word in rest):
        parser.error("give --replicates before --, as the draws are made one after the other")
    options.out.mkdir(parents=True, exist_ok=True)
    comment = options.out / "comment.md"
    methods = changed_methods(options.revision)
    if not methods:
        said = f"No method that was there at {options.revision} has changed."
        comment.write_text(f"{said}\n")
        print(said)
        return 0
    print(f"changed since {options.revision}: {', '.join(methods)}", flush=True)
    draws = options.replicates or preset_draws()
    grid = ["run", "--preset", "gate", "--model", options.model, "--bits", options.bits]
    grid += ["--methods", ",".join(["none", *methods]), *rest]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(base), options.revision)
        try:
            return judged({"base": base, "candidate": ROOT}, grid, options.out.resolve(), draws)
        finally:
            git("worktree", "remove", "--force", str(base))


def judged(trees: dict[str, Path], grid: list[str], out: Path, draws: int) -> int:
    """Run both trees draw by draw until the verdict is in; the exit code of `qbench compare`.

    trees: by side, whose runs lie in folders of these names in `out`.
    """
    comment = out / "comment.md"
    code = 2
    for count in looks(draws):
        for side, tree in trees.items():
            link(tree)
            qbench(tree, [*grid, "--replicates", str(count), "--out", str(out / side)])
        look = ["--look", f"{count}/{draws}"] if draws_at_random(out / "candidate") else []
        sides = [str(out / side) for side in trees]
        code = qbench(ROOT, ["compare", *sides, *look, "--markdown", str(comment)])
        undecided = comment.is_file() and comment.read_text().startswith("## undecided")
        if not look or not undecided:
            break
    return code


def looks(draws: int) -> list[int]:
    """After how many draws `qbench compare --look` looks: a half, three quarters and all of them.

    As in `qbench.stats.sequential`, which is another tree's where this runs without being
    installed.
    """
    if draws <= 2:
        return [draws]
    return sorted({max(2, math.ceil(share * draws)) for share in (0.5, 0.75, 1.0)})


def preset_draws() -> int:
    """The replicates of the preset `gate` in this tree."""
    presets = yaml.safe_load((ROOT / "qbench" / "experiment" / "presets.yaml").read_text())
    return int(presets["gate"]["replicates"])


def draws_at_random(run: Path) -> bool:
    """Whether a run has several draws of a method; what draws nothing has one cell."""
    records = [json.loads(path.read_text()) for path in (run / "records").glob("*.json")]
    return len({record["cell"]["seed"] for record in records}) > 1


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and behind it: options of `qbench run`."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def changed_methods(revision: str) -> list[str]:
    """Names of the methods in files that differ from the revision and were there."""
    paths = git("diff", "--name-only", revision, "--", "methods").split()
    names: list[str] = []
    for path in paths:
        if not (ROOT / path).is_file() or not path.endswith(".py"):
            continue
        try:
            before = git("show", f"{revision}:{path}")
        except subprocess.CalledProcessError:
            continue  # a new file: `make regress` holds it against another method
        known = NAME.findall(before)
        names += [name for name in NAME.findall((ROOT / path).read_text()) if name in known]
    return names


def link(tree: Path) -> None:
    """The tree of links from which a checkout is imported without being installed."""
    home = tree / ".typetree" / "qbench"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for path in [*(tree / "qbench").iterdir(), *(tree / name for name in TOP)]:
        (home / path.name).symlink_to(path)


def qbench(tree: Path, arguments: Sequence[str]) -> int:
    """`qbench` with the code of this tree; its exit code. SystemExit where a run did not work."""
    code = "from qbench.commands.main import main; main()"
    environment = os.environ | {"PYTHONPATH": str(tree / ".typetree"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], env=environment)
    if arguments[0] == "run" and done.returncode not in (0, 1):  # 1: a cell failed, which is told
        raise SystemExit(2)
    return done.returncode


def git(*arguments: str) -> str:
    """What git says in this repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
