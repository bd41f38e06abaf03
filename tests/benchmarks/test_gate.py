"""The gate of pull requests: the steps of the workflow, run here on a copy of the repository."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from places import ROOT
from qbench import registry
from qbench.stats.sequential import looks

WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"
SMALL = (
    "--tasks wikitext,divergence --set wikitext.limit=6 --set divergence.limit=6 "
    "--set wikitext.length=64 --set divergence.length=64 --group-size 32 --dtype float32 --jobs 1"
)
GH = """#!/bin/sh
printf "%s\\n" "$@" > ../gh
while [ "$1" != --body-file ]; do shift; done
cat "$2"
"""
LEAF = '''"""Round-to-nearest by a name of its own, on which no other method builds."""

from dataclasses import dataclass
from typing import ClassVar

from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class Leaf(RTN):
    """Round to nearest."""

    name: ClassVar[str] = "leaf"
'''
WORSE = """

_round = Leaf.quantize_weight


def _worse(self, weight, scheme):
    return _round(self, weight * -2, scheme)


Leaf.quantize_weight = _worse
"""


def steps() -> dict[str, dict[str, object]]:
    """The steps of the workflow's job by their names."""
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]
    return {step["name"]: step for step in job["steps"] if "name" in step}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of its own that holds the tracked files as they are now, in one commit."""
    tree = tmp_path / "copy"
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\n"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    git(tree, "init", "--quiet")
    commit(tree, "base")
    return tree


def git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(tree: Path, message: str) -> str:
    """Commit everything; the commit before it, or nothing."""
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(tree, "add", "--all")
    git(tree, *who, "commit", "--quiet", "-m", message)
    return git(tree, "rev-parse", "HEAD")


def run_steps(tree: Path, model: Path, base: str) -> tuple[int, str, str]:
    """Run the judging and the commenting step as the workflow's runner would.

    Returns the first one's exit code and output, and the comment. The environment is there already,
    and GitHub is not.
    """
    ready = tree.parent / "ready"
    ready.touch()
    tools = tree.parent / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    environment = os.environ | {
        "MAKEFLAGS": "e",  # so that the variables below hold
        "READY": str(ready),
        "RUN": f"PYTHONSAFEPATH=1 {Path(sys.prefix) / 'bin'}/",
        "MODEL": str(model),
        "DATA": "mini",
        "GATE": SMALL,
        "BASE_SHA": base,
        "NUMBER": "7",
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }
    done = shell(steps()["Judge"], tree, environment)
    said = shell(steps()["Comment"], tree, environment)
    assert said.returncode == 0, done.stderr + said.stderr
    assert (tree.parent / "gh").read_text().split("\n")[:3] == ["pr", "comment", "7"]
    return done.returncode, done.stdout + done.stderr, said.stdout


def shell(step: dict[str, object], tree: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = ["bash", "-e", "-c", step["run"]]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


def test_the_workflow_names_what_exists() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    paths = workflow[True]["pull_request"]["paths"]  # YAML reads `on` as true
    modules = [f"{name.replace('.', '/')}.py" for name in registry._BUILDS_ON]
    assert paths == ["methods/**", *modules]
    targets = (ROOT / "Makefile").read_text()
    assert steps()["Install"]["run"] == "make setup" and "\nsetup:" in targets
    assert "\ngate:" in targets and steps()["Judge"]["run"].startswith("make gate ")
    assert steps()["Comment"]["if"] == "always()"


@pytest.fixture
def gate(monkeypatch):
    """The gate, which runs nothing: what it would run, as (tree, words), and the verdicts to come.

    The candidate's run has as many draws as are asked for.
    """
    spec = importlib.util.spec_from_file_location("gate", ROOT / "benchmarks" / "gate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gate", module)  # dataclasses look their module up here
    spec.loader.exec_module(module)
    calls, verdicts = [], []

    def qbench(tree, arguments):
        calls.append((tree, arguments))
        if arguments[0] == "compare":
            Path(arguments[-1]).write_text(f"## {verdicts.pop(0)}: such\n")
            return 0
        records = Path(arguments[-1]) / "records"
        records.mkdir(parents=True, exist_ok=True)
        for seed in range(int(arguments[arguments.index("--replicates") + 1])):
            cell = {"method": "gptq", "seed": seed}
            (records / f"{seed}.json").write_text(json.dumps({"cell": cell}))
        return 0

    monkeypatch.setattr(module, "link", lambda tree: None)
    monkeypatch.setattr(module, "share_libraries", lambda base, candidate: [])
    monkeypatch.setattr(module, "qbench", qbench)
    return module, calls, verdicts


def judged(module, folder: Path) -> int:
    """The code of a gate over four draws whose runs lie in `folder`."""
    sides = [module.Side(Path(name), folder / name) for name in ("base", "candidate")]
    return module.judged(sides, ["run"], folder / "comment.md", 4)


def test_draws_are_made_until_the_verdict_is_in(gate, tmp_path):
    module, calls, verdicts = gate
    verdicts += ["undecided", "worse", "pass"]
    assert judged(module, tmp_path) == 0
    made = [words[words.index("--replicates") + 1] for _, words in calls if words[0] == "run"]
    assert made == ["2", "2", "3", "3"], "base and candidate, and not the fourth draw"
    asked = [words[words.index("--look") + 1] for _, words in calls if words[0] == "compare"]
    assert asked == ["2/4", "3/4"]


def test_what_draws_nothing_is_looked_at_once(gate, tmp_path, monkeypatch):
    module, calls, verdicts = gate
    verdicts += ["undecided"]
    monkeypatch.setattr(module, "draws_made", lambda run: 1)
    judged(module, tmp_path)
    assert [words[0] for _, words in calls] == ["run", "run", "compare"]
    assert "--look" not in calls[-1][1]


def test_a_run_that_does_not_work_leaves_no_earlier_comment(gate, tmp_path, monkeypatch):
    module, _, verdicts = gate
    verdicts += ["undecided", "pass"]
    runs = module.qbench
    monkeypatch.setattr(
        module, "qbench", lambda tree, words: 2 if "3" in words else runs(tree, words)
    )
    assert judged(module, tmp_path) == 2
    assert (tmp_path / "comment.md").read_text() == module.NO_VERDICT


def test_a_state_of_a_tree_has_a_folder_of_its_own(gate, tmp_path):
    tree = tmp_path / "tree"
    shared = tree / "methods" / "shared.py"
    shared.parent.mkdir(parents=True)
    git(tmp_path, "init", "--quiet", str(tree))
    (tree / "pyproject.toml").write_text("")
    states = []
    for text in ("a", "b", "a"):
        shared.write_text(text)
        states.append(gate[0].state(tree, ["run"]))
    assert states[0] == states[2] != states[1]
    assert gate[0].state(tree, ["run", "--bits", "4"]) != states[0]


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """A base and a candidate of one library in C, which the candidate alone has; and the gate."""
    spec = importlib.util.spec_from_file_location("gate", ROOT / "benchmarks" / "gate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gate", module)
    spec.loader.exec_module(module)
    pair = tmp_path / "base", tmp_path / "candidate"
    for tree in pair:
        (tree / "methods").mkdir(parents=True)
        git(tree, "init", "--quiet")
        (tree / ".gitignore").write_text("*.so\n")
        (tree / "methods" / "loops.c").write_text("int loops_one(void) { return 1; }\n")
        (tree / "pyproject.toml").write_text(
            "[tool.setuptools]\npackages = []\n"
            '[[tool.setuptools.ext-modules]]\nname = "qbench.methods._loops"\n'
            'sources = ["methods/loops.c"]\n'
        )
    (pair[1] / "methods" / f"_loops{module.EXTENSION_SUFFIXES[0]}").write_bytes(b"in C")
    return module, *pair


def test_the_base_computes_with_the_library_of_the_candidate(trees):
    module, base, candidate = trees
    before = module.state(base, ["run"])
    assert module.share_libraries(base, candidate) == []
    assert module.library(base, "methods/_loops").read_bytes() == b"in C"
    assert module.state(base, ["run"]) != before, "cells in torch are no cells in C"


def test_a_library_of_another_source_is_built_for_the_base_or_missed_in_words(trees, monkeypatch):
    module, base, candidate = trees
    (base / "methods" / "loops.c").write_text("int loops_one(void) { return 2; }\n")
    built = []
    monkeypatch.setattr(module, "build_libraries", built.append)
    (said,) = module.share_libraries(base, candidate)
    assert built == [base] and module.library(base, "methods/_loops") is None
    assert said.startswith("Only the candidate has the library methods/_loops, and the other one")
    module.library(candidate, "methods/_loops").unlink()
    built.clear()
    assert module.share_libraries(base, candidate) == [] == built, "both compute in torch"


@pytest.mark.slow
def test_the_libraries_of_a_tree_are_built_beside_their_sources(gate, copy):
    pytest.importorskip("setuptools", minversion="77", reason="what builds them is not here")
    if shutil.which("cc") is None:
        pytest.skip("no compiler")
    module = gate[0]
    assert set(module.library_sources(copy)) >= {"methods/native/_loops", "kernels/cpu/_bcq"}
    module.build_libraries(copy)
    assert module.library(copy, "methods/native/_loops")
    assert ".so" not in git(copy, "status", "--porcelain")


def test_what_cannot_be_run_is_left_out_with_a_sentence(gate, tmp_path, monkeypatch):
    module, calls, verdicts = gate
    verdicts += ["pass"]
    now = {
        "none": {"source": "b", "lacks": None},
        "gptq": {"source": "b", "lacks": None},
        "rtn": {"source": "a", "lacks": None},
        "mine": {"source": "b", "lacks": None},
        "hqq": {"source": "b", "lacks": "run `qbench env create hqq`"},
    }
    before = {name: entry | {"source": "a"} for name, entry in now.items() if name != "mine"}
    monkeypatch.setattr(module, "method_sources", lambda tree: now if tree == ROOT else before)
    monkeypatch.setattr(module, "state", lambda tree, words: "0")
    monkeypatch.setattr(module, "share_libraries", lambda base, candidate: ["Only the base has."])
    options = argparse.Namespace(revision="main", model="m", bits="3", replicates=2, gone="")
    comment = tmp_path / "comment.md"
    assert module.gated(tmp_path / "old", options, [], comment) == 0
    assert "Only the base has." in comment.read_text()
    methods = {words[words.index("--methods") + 1] for _, words in calls if words[0] == "run"}
    assert methods == {"none,gptq"}
    assert "hqq has changed and is not judged: run `qbench env" in comment.read_text()
    before["gptq"] = now["gptq"]
    assert module.gated(tmp_path / "old", options, [], comment) == 0
    assert comment.read_text().startswith("No method") and "hqq has changed" in comment.read_text()


def test_a_method_that_is_gone_is_named_and_does_not_pass(gate, tmp_path, monkeypatch):
    module, _, verdicts = gate
    verdicts += ["pass"]
    now = {"none": {"source": "a", "lacks": None}, "gptq-2": {"source": "a", "lacks": None}}
    before = {"none": now["none"], "gptq": now["gptq-2"], "rtn": {"source": "r", "lacks": None}}
    monkeypatch.setattr(module, "method_sources", lambda tree: now if tree == ROOT else before)
    monkeypatch.setattr(module, "state", lambda tree, words: "0")
    options = argparse.Namespace(revision="main", model="m", bits="3", replicates=2, gone="rtn")
    comment = tmp_path / "comment.md"
    assert module.gated(tmp_path / "old", options, [], comment) == 2
    said = comment.read_text()
    assert "gptq was there at main and is gone: removed, or under another name. Nothing" in said
    assert "give --gone gptq." in said and "--gone rtn" not in said and "rtn was there" in said
    options.gone = "gptq,rtn"
    assert module.gated(tmp_path / "old", options, [], comment) == 0
    now["rtn"] = {"source": "b", "lacks": None}
    options.gone = ""
    assert module.gated(tmp_path / "old", options, [], comment) == 2, "rtn passes, gptq is gone"
    assert comment.read_text().startswith("## pass") and "gptq was there" in comment.read_text()


@pytest.mark.slow
def test_a_method_has_changed_where_what_it_builds_on_has(gate, copy, monkeypatch):
    module = gate[0]
    monkeypatch.undo()  # trees are linked
    monkeypatch.setenv("QBENCH_ENVS", str(copy.parent / "environments"))
    module.link(copy)
    before = module.method_sources(copy)
    feedback = copy / "methods" / "error_feedback.py"
    text = feedback.read_text()
    feedback.write_text(f"{text}\n# more\n")
    changed, left_out = module.changed_methods(before, module.method_sources(copy))
    assert {"gptq", "flexround"} < set(changed) and "rtn" not in changed and not left_out
    feedback.write_text(text)
    workers = copy / "methods" / "external" / "workers"
    for file in (copy / "methods" / "uniquanf.py", workers / "hqq_worker.py"):
        file.write_text(f"{file.read_text()}\n# more\n")
    changed, left_out = module.changed_methods(before, module.method_sources(copy))
    assert set(changed) == {"uniquanf", "flexbcq"} and list(left_out) == ["hqq"]


@pytest.mark.parametrize("draws", [1, 2, 3, 4, 7, 12])
def test_the_looks_are_those_of_the_command(gate, draws):
    assert gate[0].looks(draws) == [look.draws for look in looks(draws)]
    assert gate[0].preset_draws() == 4


@pytest.mark.long
def test_a_worse_change_does_not_pass_and_one_that_changes_nothing_does(
    copy: Path, tiny_folder: Path
) -> None:
    method = copy / "methods" / "leaf.py"
    method.write_text(LEAF)
    base = commit(copy, "a method of its own")
    code, output, comment = run_steps(copy, tiny_folder, base)
    assert code == 0 and "No method" in comment, output
    remark = "\n# A remark.\n"
    method.write_text(LEAF + remark + WORSE)
    commit(copy, "worse")
    code, output, comment = run_steps(copy, tiny_folder, base)
    assert code == 2 and "changed since" in output, output  # make's code for any failure
    assert comment.startswith("## worse:") and "leaf 3b g32" in comment
    method.write_text(LEAF + remark)
    commit(copy, "a remark")
    code, output, comment = run_steps(copy, tiny_folder, base)
    assert code == 0 and comment.startswith("## pass:"), output
    assert git(copy, "worktree", "list").count("\n") == 0


@pytest.mark.long
def test_regress_checks_runs_and_judges(tiny_folder: Path, tmp_path: Path, command) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from qbench.methods.gptq import GPTQ\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(GPTQ):\n"
        '    """GPTQ again."""\n\n    name: ClassVar[str] = "mine"\n'
    )
    words = ["regress", plugin, "--base", "gptq", "--model", tiny_folder, "--data", "mini"]
    words += ["--group-size", "32", "--replicates", "3", "--out", tmp_path / "run"]
    words += ["--json", tmp_path / "verdict.json", "--markdown", tmp_path / "comment.md"]
    limits = ("wikitext.limit=6", "divergence.limit=6", "wikitext.length=64", "gsm8k.limit=3")
    limits += ("divergence.length=64", "calibration.samples=4", "calibration.length=32")
    for limit in limits:
        words += ["--set", limit]
    code, output, error = command(*words)
    assert code == 0, output + error
    assert "ok    mine  all contract checks" in output and "pass: No endpoint" in output
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    (cell,) = verdict["cells"]
    assert [one["word"] for one in cell["findings"]] == ["same"] * 3
    assert {one["harm"]["draws"] for one in cell["findings"]} == {2}
    (note,) = cell["notes"]
    assert note.startswith("peak MB: of the candidate alone")
    (look,) = verdict["looks"]
    assert look["outcome"] == "pass" and look["draws"] == 2 and verdict["draws"] == 3
    comment = (tmp_path / "comment.md").read_text()
    assert comment.startswith("## pass: ")
    assert "- stopped after 2 of 3 draws: the verdict is in" in comment
    assert f"{100 * look['level']:.4g} % interval" in comment
    code, output, error = command(*words, "--no-early-stop")
    assert code == 0 and "looks" not in output, output + error
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert {one["harm"]["draws"] for one in verdict["cells"][0]["findings"]} == {3}
    assert verdict["looks"] == [] and verdict["level"] == 0.95
    plugin.write_text(plugin.read_text().replace("GPTQ again", "x") + "    damp: float = -1\n")
    code, output, error = command(*words)
    assert code in (1, 2) and "Traceback" not in output + error
    code, output, error = command(*["gptq" if word == plugin else word for word in words])
    assert code == 2 and "are both 'gptq'" in error
