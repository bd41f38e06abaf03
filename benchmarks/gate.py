"""Hold the methods that were changed since a revision against what they were there.

    python -P benchmarks/gate.py REVISION [--out runs/gate] [--bits 3] [-- options of qbench run]

Both trees run the same small grid, `qbench run --preset gate`, each with its own code, and `qbench
compare` says whether anything is worse. Exit code: that of `qbench compare`; 0 where no method that
was there has changed. OUT/comment.md is the comment for a pull request.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
    mine, rest = split(sys.argv[1:])
    options = parser.parse_args(mine)
    options.out.mkdir(parents=True, exist_ok=True)
    comment = options.out / "comment.md"
    methods = changed_methods(options.revision)
    if not methods:
        said = f"No method that was there at {options.revision} has changed."
        comment.write_text(f"{said}\n")
        print(said)
        return 0
    print(f"changed since {options.revision}: {', '.join(methods)}", flush=True)
    grid = ["run", "--preset", "gate", "--model", options.model, "--bits", options.bits]
    grid += ["--methods", ",".join(["none", *methods]), *rest]
    sides = {name: (options.out / name).resolve() for name in ("base", "candidate")}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(base), options.revision)
        try:
            for tree, out in zip((base, ROOT), sides.values(), strict=True):
                link(tree)
                qbench(tree, [*grid, "--out", str(out)])
        finally:
            git("worktree", "remove", "--force", str(base))
    return qbench(
        ROOT,
        ["compare", *map(str, sides.values()), "--markdown", str(comment.resolve())],
    )


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
