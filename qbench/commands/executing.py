"""`--executor` and its flags: what runs the cells of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from qbench.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from qbench.experiment.plan import Plan
    from qbench.experiment.store import Store
    from qbench.experiment.view import View
    from qbench.records import Record

Executor: TypeAlias = "Callable[[Plan, Store, View], list[Record]]"
EXECUTORS = ("local", "ray", "slurm")


def as_executor(name: str, address: str | None, slurm: Sequence[str] | None) -> Executor | None:
    """What runs the cells; None for this machine. ConfigError for flags that do not fit."""
    if name not in EXECUTORS:
        raise ConfigError(unknown_name("executor", name, EXECUTORS))
    options = _options(slurm or [])
    if name == "local" and address is not None:
        raise ConfigError(f"--address {address} needs --executor ray or slurm")
    if name != "slurm" and options:
        raise ConfigError(f"--slurm {slurm[0] if slurm else ''} needs --executor slurm")
    if name == "ray":
        from qbench.executors.on_ray import run_on_ray

        return partial(run_on_ray, address=address)
    if name == "slurm":
        from qbench.executors.on_slurm import run_on_slurm

        return partial(run_on_slurm, cluster=address, options=options)
    return None


def require_engine(name: str, address: str | None) -> None:
    """ConfigError where the executor is not available here; checked before a plan is made."""
    if name == "ray":
        from qbench.executors.on_ray import require_ray

        require_ray()
    if name == "slurm":
        from qbench.executors.on_slurm import require_slurm

        require_slurm(address)


def _options(texts: Sequence[str]) -> dict[str, str]:
    """The options of sbatch; ConfigError for another form, and for one that is given twice."""
    options: dict[str, str] = {}
    for key, value in map(_option, texts):
        if key in options:
            raise ConfigError(f"--slurm {key} is given twice; keep one of them")
        options[key] = value
    return options


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"--slurm {text!r} is not KEY=VALUE; for example --slurm partition=gpu")
    return key.removeprefix("--"), value
