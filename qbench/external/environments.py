"""Virtual environments of other packages: made from their requirements, listed, removed.

ENVS/NAME/                          the environment, where ENVS is QBENCH_ENVS or in the cache
ENVS/NAME/qbench-environment.json   written last: what was resolved, and what it took
ENVS/NAME.failed.json               why the last attempt failed
ENVS/NAME.log                       what the installer and the first import printed
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from qbench.errors import ConfigError, StoreError, readable
from qbench.external.contract import Package, Version
from qbench.external.packages import requirements
from qbench.files.atomic import remove as remove_path
from qbench.files.atomic import write_text
from qbench.files.cache import cache_folder
from qbench.files.claims import claimed_in_time
from qbench.files.ordinary import json_of, ordinary_text

Status = Literal["installed", "missing", "broken", "failed", "unavailable"]
MARK = "qbench-environment.json"
INSTALL_SECONDS = 3600.0  # an installer that takes longer hangs
WORDS = ("ERROR", "Error", "error:")  # of the line in which an installer or Python says why
LIST = (
    "import importlib.metadata as m, json; "
    "print(json.dumps(sorted({f'{d.name}=={d.version}' for d in m.distributions()})))"
)


@dataclass(frozen=True)
class Installed:
    """What an environment holds. packages: `name==version`. seconds: that installing took.

    installer: `uv` or `pip`. python: its version.
    """

    python: str
    installer: str
    seconds: float
    packages: list[str]


@dataclass(frozen=True)
class State:
    """How it stands with the environment of a package. reason: why it cannot be used."""

    package: Package
    status: Status
    reason: str | None = None
    nbytes: int = 0
    installed: Installed | None = None


def environments() -> Path:
    """The folder that holds them: QBENCH_ENVS, or one in the cache."""
    return Path(os.environ.get("QBENCH_ENVS") or cache_folder() / "environments").absolute()


def python_of(package: Package) -> Path:
    """The interpreter of its environment, whether it is there or not."""
    place = environments() / package.name
    return place / "Scripts" / "python.exe" if os.name == "nt" else place / "bin" / "python"


def state(package: Package, measured: bool = False) -> State:
    """How it stands with a package. measured: whether its bytes are counted, which takes a while.

    An environment is broken where its interpreter or its mark is gone, or where a requirement that
    stands in its file now is not in it.
    """
    place = environments() / package.name
    if package.unavailable is not None:
        return State(package, "unavailable", package.unavailable)
    if not place.is_dir():
        failure = environments() / f"{package.name}.failed.json"
        if failure.is_file():
            return State(package, "failed", _failure(failure))
        return State(package, "missing", how_to_create(package))
    nbytes = _bytes(place) if measured else 0
    again = how_to_create(package)
    try:
        installed = TypeAdapter(Installed).validate_json((place / MARK).read_text())
    except OSError:
        return State(package, "broken", f"it was not installed to its end; {again}", nbytes)
    except (ValidationError, ValueError):
        return State(package, "broken", f"{place / MARK} is damaged; {again}", nbytes)
    if not python_of(package).exists():
        reason = f"its interpreter {python_of(package)} is gone; {again}"
        return State(package, "broken", reason, nbytes, installed)
    unmet = _unmet(package, installed)
    if unmet is not None:
        reason = f"its requirements have changed since it was made, {unmet} is not in it; {again}"
        return State(package, "broken", reason, nbytes, installed)
    return State(package, "installed", None, nbytes, installed)


def _unmet(package: Package, installed: Installed) -> str | None:
    """The first requirement of a package that its environment does not hold; None where all are."""
    versions = {}
    for line in installed.packages:
        name, _, version = line.partition("==")
        versions[_normal(name)] = version.partition("+")[0]  # 2.13.0+cpu is 2.13.0
    for line in requirements(package).read_text().splitlines():
        name, _, version = line.partition("==")
        asked = line.strip() and not line.startswith("#")
        if asked and versions.get(_normal(name)) != version:
            return line
    return None


def _normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def how_to_create(package: Package) -> str:
    """The command that installs it."""
    return f"run `qbench env create {package.name}`"


def create(package: Package, say: Callable[[str], None] = lambda text: None) -> State:
    """Make the environment of a package anew; one that was there goes. say: is told each step.

    A failure stays on the disk as the reason why it is not there. StoreError with that reason.
    """
    asked = requirements(package)
    folder = environments()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / package.name
    log = folder / f"{package.name}.log"
    with claimed_in_time(folder / f"{package.name}.lock"):
        remove(package)
        log.write_bytes(b"")
        started = time.perf_counter()
        installer = "uv" if shutil.which("uv") else "pip"
        try:
            for words in _steps(package, asked, place, installer):
                say(" ".join(words))
                _call(words, log)
            installed = Installed(
                python=_answer(package, "import platform; print(platform.python_version())"),
                installer=installer,
                seconds=round(time.perf_counter() - started, 1),
                packages=json_of(_answer(package, LIST)),
            )
        except (OSError, subprocess.SubprocessError, ValueError, StoreError) as error:
            raise _failed(package, str(error), log) from None
        write_text(place / MARK, json.dumps(asdict(installed), indent=1) + "\n")
    return state(package, measured=True)


def remove(package: Package) -> bool:
    """Remove the environment of a package and what is known of a failure; False without one.

    What lies in its place goes, too: a file, or a link, but not what that leads to.
    """
    place = environments() / package.name
    for name in (f"{package.name}.failed.json", f"{package.name}.log"):
        (environments() / name).unlink(missing_ok=True)
    present = os.path.lexists(place)
    if present:
        remove_path(place)
    return present


def _steps(package: Package, asked: Path, place: Path, installer: str) -> list[Sequence[str]]:
    """The commands that install a package, the first import of it among them."""
    python = str(python_of(package))
    base = interpreter(package)
    steps: list[Sequence[str]]
    if installer == "uv":
        steps = [
            ("uv", "venv", "--quiet", "--python", base, str(place)),
            ("uv", "pip", "install", "--quiet", "--python", python, "-r", str(asked)),
        ]
    else:
        steps = [
            (base, "-m", "venv", str(place)),
            (python, "-m", "pip", "install", "--quiet", "-r", str(asked)),
        ]
    if package.module is not None:
        steps.append((python, "-c", f"import {package.module}"))
    return steps


def interpreter(package: Package) -> str:
    """A Python of a version that the package is installed with; ConfigError where none is here."""
    low, high = package.python
    if low <= sys.version_info[:2] <= high:
        return sys.executable
    for version in _between(low, high):
        path = shutil.which(f"python{version[0]}.{version[1]}")
        if path is not None:
            return path
    raise ConfigError(
        f"{package.name} is installed with Python {low[0]}.{low[1]} to {high[0]}.{high[1]}, and "
        "none of these is here; install one of them"
    )


def _between(low: Version, high: Version) -> list[Version]:
    """Versions of Python 3, the newest first."""
    return [(3, minor) for minor in range(high[1], low[1] - 1, -1)]


def clean_variables() -> dict[str, str]:
    """The environment's variables without those that let a Python import what is not its own."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if key not in foreign}


def _call(words: Sequence[str], log: Path) -> None:
    """Run a command to its end; StoreError with what it said where it fails."""
    with log.open("ab") as output:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=clean_variables(),
            timeout=INSTALL_SECONDS,
        )
    if done.returncode:
        raise StoreError(f"{_last_error(log)} (exit code {done.returncode})")


def _answer(package: Package, code: str) -> str:
    """What a line of Python prints in its environment."""
    words = [str(python_of(package)), "-I", "-c", code]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env=clean_variables(), timeout=60
    )
    return done.stdout.strip()


def _last_error(log: Path) -> str:
    """The last line that speaks of an error, or the last line."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if any(word in line for word in WORDS)]
    return (errors or said or ["it said nothing"])[-1]


def _failed(package: Package, reason: str, log: Path) -> StoreError:
    """Note a failure beside where the environment would be, whose half is removed."""
    shutil.rmtree(environments() / package.name, ignore_errors=True)
    reason = readable(reason)
    write_text(
        environments() / f"{package.name}.failed.json", json.dumps({"reason": reason}) + "\n"
    )
    return StoreError(
        f"the environment of {package.name} cannot be made: {reason}; {log} has all that was said"
    )


def _failure(path: Path) -> str:
    try:
        return str(json_of(ordinary_text(path))["reason"])
    except (StoreError, ValueError, KeyError, TypeError):
        return f"{path} is damaged"


def _bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
