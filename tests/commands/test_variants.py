"""A method as a file, or as a file was at a git revision: what is run, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import run_command
from places import ROOT
from qbench.commands.variants import method_of, read_variant, read_variant_here
from qbench.errors import ConfigError
from qbench.experiment.grid import PRESETS
from qbench.method_source import names_in
from qbench.registry import declared, method_class

MINE = '''"""GPTQ again."""

from dataclasses import dataclass
from typing import ClassVar

from qbench.methods.gptq import GPTQ


@dataclass(frozen=True)
class Mine(GPTQ):
    """With another damping."""

    name: ClassVar[str] = "mine"
    damp: float = 0.01
'''


def git(*arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, the working directory, whose methods/mine.py has two commits."""
    folder = tmp_path / "repository"
    (folder / "methods").mkdir(parents=True)
    monkeypatch.chdir(folder)
    git("init", "--quiet")
    for damp in ("0.01", "0.02"):
        (folder / "methods" / "mine.py").write_text(MINE.replace("0.01", damp))
        git("add", "--all")
        git("commit", "--quiet", "-m", damp)
    return folder


def test_a_file_at_a_revision_is_a_method_with_the_commit_behind_its_name(repository: Path) -> None:
    commit = git("rev-parse", "HEAD~1")[:8]
    variant = read_variant("HEAD~1:methods/mine.py")
    assert variant.method == method_of(variant) == f"mine-{commit}"
    assert declared(variant.method).parameters["damp"] == 0.01
    assert variant.plugin == Path("runs/revisions") / commit / "methods" / "mine.py"
    assert variant.plugin.read_text().startswith(MINE)
    (repository / "below").mkdir()
    inside = read_variant("HEAD~1:./methods/mine.py")
    assert inside.plugin.resolve() == variant.plugin.resolve()


def test_a_file_of_this_project_is_its_method() -> None:
    own = str(ROOT / "methods" / "gptq.py")
    assert (read_variant(own).method, read_variant(own).plugin) == ("gptq", None)
    with pytest.raises(ConfigError, match=r"defines 2 methods \(unisvq, unisvq-untied\)"):
        read_variant(own.replace("gptq.py", "unisvq.py"))
    with pytest.raises(ConfigError, match="Did you mean 'gptq'"):
        read_variant("gtpq")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("HEAD~7:methods/mine.py", "there is no revision 'HEAD~7'"),
        ("HEAD:methods/other.py", "HEAD has no file methods/other.py"),
        ("HEAD:/methods/mine.py", "HEAD has no file /methods/mine.py"),
        ("HEAD:../outside.py", "HEAD has no file ../outside.py"),
        (":methods/mine.py", "names no revision"),
        ("--output=x:methods/mine.py", "names no revision"),
        ("methods/nothing.py", "methods/nothing.py is no file"),
        ("../outside.py", "lies outside of"),
        ("link.py", "lies outside of"),
    ],
)
def test_what_is_not_there_is_one_sentence(repository: Path, text: str, sentence: str) -> None:
    (repository.parent / "outside.py").write_text("raise SystemExit('this must not run')")
    (repository / "link.py").symlink_to("../outside.py")
    with pytest.raises(ConfigError) as refused:
        read_variant_here(text)
    assert sentence in str(refused.value)
    if not text.startswith("-"):
        done = run_command("compare", text, "methods/mine.py")
        assert done.code == 2 and sentence in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("name", ["y" * 300, "/".join(["a" * 200] * 30), "a\0b", "\ud800x", "-p"])
@pytest.mark.parametrize("text", ["{}.py", "HEAD:{}.py", "{}:mine.py"])
def test_names_that_no_file_can_have_are_refused(repository: Path, text: str, name: str) -> None:
    with pytest.raises(ConfigError):
        read_variant_here(text.format(name))


BESIDE = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import counted_beside
from package_beside.inner import NUMBER

TABLE = (Path(__file__).parent / "tables" / ".." / "tables/levels.txt").read_text()
FACTS = (counted_beside.NUMBER, NUMBER, (Path(__file__).parent / "levels.txt").read_text())
"""


@pytest.mark.parametrize("folder", ["", "methods/"])
def test_what_is_beside_a_file_is_that_of_the_revision_too(
    repository: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = repository / folder
    files = ("counted_beside.py", "package_beside/inner.py", "tables/levels.txt", "levels.txt")
    for number in (1, 2):
        for name in files:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(f"NUMBER = {number}")
        (place / "package_beside" / "__init__.py").write_text("from . import inner\n")
        (place / "own.py").write_text(f"{BESIDE}# {number}\n{MINE.replace('mine', 'own')}")
        git("add", "--all")
        git("commit", "--quiet", "-m", "beside")
    (place / "counted_beside.py").write_text("NUMBER = 3")
    for text, numbers in {"HEAD~1": (1, 1), "HEAD": (2, 2), "": (3, 2)}.items():
        variant = read_variant(f"{text}:{folder}own.py" if text else f"{folder}own.py")
        cls = method_class(method_of(variant))
        facts = sys.modules[cls.__module__].FACTS
        assert facts == (*numbers, f"NUMBER = {numbers[1]}")
        if text:
            state = variant.state
            (variant.plugin.parent / "package_beside" / "inner.py").write_text("NUMBER = 4")
            assert variant.state != state
    monkeypatch.chdir(place / "tables")
    copied = read_variant("HEAD~1:../own.py").plugin
    assert {(copied.parent / name).read_text() for name in files} == {"NUMBER = 1"}


def test_of_methods_that_derive_from_each_other_the_last_one_counts(repository: Path) -> None:
    path = repository / "methods" / "two.py"
    second = 'NAME = "sec" + "ond"\n\n\n@dataclass(frozen=True)\nclass Second(Mine):\n'
    first = MINE.replace('"mine"', '"a-base"')
    path.write_text(f"{first}\n\n{second}    name: ClassVar[str] = NAME\n")
    git("add", "--all")
    git("commit", "--quiet", "-m", "two")
    commit = git("rev-parse", "HEAD")[:8]
    assert method_of(read_variant("methods/two.py")) == "second"
    path.write_text(path.read_text().replace("a-base", "another-base"))
    assert method_of(read_variant("HEAD:methods/two.py")) == f"second-{commit}"


@pytest.mark.parametrize("declared_as", ["name: ClassVar = 'mine'", 'name = ("mi" "ne")'])
def test_only_what_a_class_declares_is_a_name(repository: Path, declared_as: str) -> None:
    path = repository / "methods" / "mine.py"
    others = 'class Kind:\n    name = "kind"\n\n\ndef f():\n    name = "local"\n    return name\n'
    path.write_text(MINE.replace('name: ClassVar[str] = "mine"', declared_as) + others)
    git("commit", "--quiet", "-am", "others")
    commit = git("rev-parse", "HEAD")[:8]
    variant = read_variant("HEAD:methods/mine.py")
    assert variant.method == method_of(variant) == f"mine-{commit}"
    path.write_text("def f(:\n")
    git("commit", "--quiet", "-am", "no Python")
    with pytest.raises(ConfigError, match="HEAD:methods/mine.py is not Python"):
        read_variant("HEAD:methods/mine.py")


@pytest.mark.parametrize(
    "other",
    [
        "class Kind(Enum):\n    name = make()\n",
        "class Failed(Mine):\n    pass\n",
        "class Failed(Exception):\n    pass\n",
        "class Net(Module):\n    name = kind\n",
    ],
)
def test_a_class_that_is_no_method_is_not_counted(other: str) -> None:
    assert names_in(f"{MINE}\n\n{other}".encode())[0] == {"Mine": "mine"}
    assert "Mine" not in names_in(f"{MINE}\n\n{other}".encode())[1]


def test_all_that_a_method_derives_from_is_a_base_of_it() -> None:
    between = "class Between(Mine):\n    pass\n\n\nclass Last(Between):\n    name = NAME\n"
    names, bases = names_in(f"{MINE}\n\n{between}".encode())
    assert names == {"Mine": "mine", "Last": None}
    assert bases == {"GPTQ", "Mine", "Between"}
    imported = "import qbench.methods.gptq as ours\nclass Mine(ours.GPTQ):\n    name = NAME\n"
    assert names_in(imported.encode()) == ({"Mine": None}, {"ours.GPTQ"})


def test_two_methods_in_a_file_and_a_file_without_one_are_refused(repository: Path) -> None:
    path = repository / "methods" / "mine.py"
    second = MINE.partition("\n\n\n")[2].replace("mine", "b").replace("Mine", "Other")
    for number, text in enumerate((MINE + second, "x = 1\n")):
        path.write_text(text)
        git("commit", "--quiet", "-am", str(number))
        with pytest.raises(
            ConfigError, match=r"defines (2 methods \(mine, b\)|0 methods \(none\))"
        ):
            read_variant("HEAD:methods/mine.py")


def test_without_git_or_a_repository_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="this folder is in no git repository"):
        read_variant("HEAD:mine.py")
    (tmp_path / "mine.py").write_text(MINE)
    assert read_variant_here("mine.py").plugin == Path("mine.py")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not installed"):
        read_variant("HEAD:mine.py")
    assert read_variant_here("mine.py").plugin == Path("mine.py")


def test_one_method_is_not_held_against_itself() -> None:
    done = run_command("regress", "gptq", "--base", "gptq")
    assert done.code == 2 and "are both 'gptq'" in done.err and "HEAD~1:methods/gptq.py" in done.err


@pytest.mark.long
def test_a_revision_is_run_and_compared(
    repository: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another damping changes little; the gate's grid is cut down to a tiny model's."""
    small = {
        "group_size": 32,
        "calibration": {"samples": 4, "length": 32},
        "replicates": 3,
        "tasks": {"wikitext": {"limit": 6, "length": 64}, "divergence": {"limit": 6, "length": 64}},
    }
    monkeypatch.setitem(PRESETS, "gate", PRESETS["gate"] | small)
    words = ("compare", "HEAD~1:methods/mine.py", "HEAD:methods/mine.py", "--model", tiny_folder)
    done = run_command(*words, "--data", "mini", "--json")
    assert done.code in (0, 1), done.err
    verdict = json.loads(done.out)
    commits = [git("rev-parse", name)[:8] for name in ("HEAD~1", "HEAD")]
    assert verdict["cells"][0]["label"] == " -> ".join(f"mine-{name} 3b g32" for name in commits)
    assert (verdict["base"], verdict["candidate"]) == words[1:3]
    assert [look["draws"] for look in verdict["looks"]] in ([2], [2, 3])
    assert verdict["stopped"]
    folder = next((repository / "runs" / "regress").iterdir())
    stored = run_command("compare", f"{folder}:mine-{commits[0]}", "methods/mine.py", *words[3:])
    assert stored.code in (0, 1), stored.err
    assert f"mine-{commits[0]} 3b g32 -> mine 3b g32" in stored.out
