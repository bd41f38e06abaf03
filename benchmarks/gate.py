"""Hold the methods that were changed since a revision against what they were there.

    python -P benchmarks/gate.py REVISION [--out runs/gate] [--bits 3] [--gone NAME,NAME]
        [-- options of qbench run]

Both trees run the same small grid, `qbench run --preset gate`, each with its own code, and `qbench
compare` says whether anything is worse: after some of the draws, and after more of them as long as
that is undecided. A method has changed where its file has, or one that it builds on. Exit code:
that of `qbench compare`; 0 where no method that was there has changed, 2 where a run does not work,
and where a method is gone that --gone does not name: removed, or under another name.
OUT/comment.md is the comment for a pull request. The runs lie beside it, in a folder for each state
of a tree and each grid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOP = ("methods", "kernels", "tasks", "reports")  # folders that are packages of qbench
NO_VERDICT = "## no verdict\n\nThe gate has come to no verdict; its log says why.\n"


@dataclass(frozen=True)
class Side:
    """Base or candidate. tree: its code. run: the folder of its cells."""

    tree: Path
    run: Path


def main() -> int:
    """Run the gate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="what the methods must not be worse than")
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--bits", default="3")
    parser.add_argument("--replicates", type=int, help="draws, at most; default the preset's")
    parser.add_argument("--gone", default="", help="methods that may be gone, with commas")
    mine, rest = split(sys.argv[1:])
    options = parser.parse_args(mine)
    if any(word.startswith("--replicates") for word in rest):
        parser.error("give --replicates before --, as the draws are made one after the other")
    try:
        git("rev-parse", "--verify", "--quiet", f"{options.revision}^{{commit}}")
    except subprocess.CalledProcessError:
        parser.error(
            f"there is no commit {options.revision!r} here; `git log --oneline` lists them"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    comment = options.out.resolve() / "comment.md"
    comment.write_text(NO_VERDICT)  # however this ends, no comment of an earlier run stays
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(base), options.revision)
        try:
            return gated(base, options, rest, comment)
        finally:
            git("worktree", "remove", "--force", str(base))


def gated(base: Path, options: argparse.Namespace, rest: list[str], comment: Path) -> int:
    """Judge what has changed since the tree `base`; the exit code. rest: options of `qbench run`.

    comment: the file for it.
    """
    trees = {"base": base, "candidate": ROOT}
    for tree in trees.values():
        link(tree)
    unequal = share_libraries(base, ROOT)
    before, now = method_sources(base), method_sources(ROOT)
    methods, left_out = changed_methods(before, now)
    code = 0
    if methods:
        print(f"changed since {options.revision}: {', '.join(methods)}", flush=True)
        draws = options.replicates or preset_draws()
        grid = ["run", "--preset", "gate", "--model", options.model, "--bits", options.bits]
        grid += ["--methods", ",".join(["none", *methods]), *rest]
        sides = []
        for name, tree in trees.items():
            sides.append(Side(tree, comment.with_name(f"{name}-{state(tree, grid)}")))
        code = judged(sides, grid, comment, draws)
    else:
        said = f"No method that was there at {options.revision} and can be run here has changed."
        comment.write_text(f"{said}\n")
        print(said)
    for said in unequal:
        also_say(comment, said)
    for name, why in left_out.items():
        also_say(comment, f"{name} has changed and is not judged: {why}")
    allowed = options.gone.split(",")
    for name in sorted(before.keys() - now.keys()):
        said = f"{name} was there at {options.revision} and is gone: removed, or under another name"
        if name not in allowed:
            said += f". Nothing was held against it; where that is meant, give --gone {name}"
            code = code or 2
        also_say(comment, f"{said}.")
    return code


def also_say(comment: Path, said: str) -> None:
    """A sentence more in the comment and on the screen."""
    comment.write_text(f"{comment.read_text()}\n{said}\n")
    print(said)


def judged(sides: Sequence[Side], grid: list[str], comment: Path, draws: int) -> int:
    """Run base and candidate draw by draw until the verdict is in; the exit code.

    comment: the file that the verdict is written to.
    """
    code = 2
    for count in looks(draws):
        comment.write_text(NO_VERDICT)
        for side in sides:
            words = [*grid, "--replicates", str(count), "--out", str(side.run)]
            if qbench(side.tree, words) not in (0, 1):  # 1: a cell failed, which is told
                return 2
        look = ["--look", f"{count}/{draws}"] if draws_made(sides[-1].run) > 1 else []
        folders = [str(side.run) for side in sides]
        code = qbench(ROOT, ["compare", *folders, *look, "--markdown", str(comment)])
        if not look or not comment.read_text().startswith("## undecided"):
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


def draws_made(run: Path) -> int:
    """How many draws of a method a run has; what draws nothing has one cell."""
    cells = [json.loads(path.read_text())["cell"] for path in (run / "records").glob("*.json")]
    draws = {(cell["method"], cell["seed"]) for cell in cells}
    return max(Counter(method for method, _ in draws).values(), default=0)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and behind it: options of `qbench run`."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def changed_methods(
    before: dict[str, Any], now: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """The methods of both trees whose source differs; of those that cannot be run, why.

    before, now: as `method_sources.py` says. A new method is held against another one by `make
    regress`. The unquantized model is run beside all of them.
    """
    changed = []
    left_out = {}
    for name, entry in now.items():
        if name == "none" or name not in before or entry["source"] == before[name]["source"]:
            continue
        why = entry["lacks"] or before[name]["lacks"]
        if why:
            left_out[name] = why
        else:
            changed.append(name)
    return changed, left_out


def method_sources(tree: Path) -> dict[str, Any]:
    """What `method_sources.py` says of a tree; SystemExit where it does not run."""
    script = ROOT / "benchmarks" / "method_sources.py"
    words = [sys.executable, "-P", str(script)]
    done = subprocess.run(words, env=environment(tree), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(2)
    sources: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return sources


def state(tree: Path, words: Sequence[str]) -> str:
    """Eight digits that change when any code of a tree does, or what it is asked.

    Its libraries, which git leaves out, are code, too.
    """
    digest = hashlib.sha256(json.dumps(words).encode())
    kinds = ("--cached", "--others", "--exclude-standard")
    listed = git("ls-files", "-z", *kinds, "--", "qbench", *TOP, tree=tree)
    built = [library(tree, place) for place in library_sources(tree)]
    paths = [*(tree / name for name in listed.split("\0")), *filter(None, built)]
    for path in sorted(paths):
        if path.is_file():
            digest.update(str(path.relative_to(tree)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def share_libraries(base: Path, candidate: Path) -> list[str]:
    """Give the base the libraries in C that the candidate computes with; sentences for the others.

    git has no library, and a tree without one computes the same in torch with other last digits,
    which methods with feedback make other codes of. So a library of the same source is copied, and
    what has another source is built.
    """
    before, now = library_sources(base), library_sources(candidate)
    built = [place for place in now if library(candidate, place)]
    if any(before.get(place) != now[place] for place in built if place in before):
        build_libraries(base)
    for place in built:
        path = library(candidate, place)
        if path is not None and before.get(place) == now[place]:
            shutil.copyfile(path, base / path.relative_to(candidate))
    unequal = []
    for place in sorted(before.keys() | now.keys()):
        has = [library(tree, place) is not None for tree in (base, candidate)]
        if has[0] != has[1]:
            side = "base" if has[0] else "candidate"
            unequal.append(
                f"Only the {side} has the library {place}, and the other one computes in torch: "
                "last digits differ, by which methods with feedback choose other codes, and so do "
                "times."
            )
    return unequal


def library_sources(tree: Path) -> dict[str, list[Any]]:
    """Of each library in C, by its place in a tree: how it is built, and the bytes of its files."""
    settings = tomllib.loads((tree / "pyproject.toml").read_text())
    found: dict[str, list[Any]] = {}
    for entry in settings.get("tool", {}).get("setuptools", {}).get("ext-modules", ()):
        files = [tree / name for name in (*entry["sources"], *entry.get("depends", ()))]
        place = entry["name"].removeprefix("qbench.").replace(".", "/")
        found[place] = [entry, *(path.read_bytes() for path in files)]
    return found


def library(tree: Path, place: str) -> Path | None:
    """The library that a build left at a place in a tree, or None."""
    paths = (tree / f"{place}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def build_libraries(tree: Path) -> None:
    """Build the libraries of a tree beside their sources, where setuptools and a compiler are."""
    code = "import setuptools; setuptools.setup()"
    words = [sys.executable, "-P", "-c", code, "--quiet", "build_ext", "--inplace"]
    subprocess.run(words, cwd=tree)


def link(tree: Path) -> None:
    """The tree of links from which a checkout is imported without being installed."""
    home = tree / ".typetree" / "qbench"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for path in [*(tree / "qbench").iterdir(), *(tree / name for name in TOP)]:
        (home / path.name).symlink_to(path)


def qbench(tree: Path, arguments: Sequence[str]) -> int:
    """`qbench` with the code of this tree; its exit code."""
    code = "from qbench.commands.main import main; main()"
    words = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(words, env=environment(tree)).returncode


def environment(tree: Path) -> dict[str, str]:
    """Variables under which Python imports qbench from this tree."""
    return os.environ | {"PYTHONPATH": str(tree / ".typetree"), "PYTHONSAFEPATH": "1"}


def git(*arguments: str, tree: Path = ROOT) -> str:
    """What git says in a tree."""
    done = subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
