"""The tables behind `qbench list` and the README."""

from __future__ import annotations

from qbench.calibration.reconstruction import Reconstruction
from qbench.contracts import verb_of
from qbench.errors import ConfigError, unknown_name
from qbench.experiment.grid import SWEEPS
from qbench.models.source import known_models
from qbench.registry import Broken, methods, parameters
from qbench.tasks.registry import all_tasks, broken_tasks

Rows = list[tuple[str, ...]]
NEEDS = {
    "quantize_weight": "weights",
    "quantize_linear": "calibration",
    "quantize_block": "calibration",
}


def listing(what: str) -> tuple[tuple[str, ...], Rows]:
    """Column names and rows for `methods`, `tasks`, `models`, `sweeps` or `kernels`."""
    kinds = {
        "methods": _methods,
        "tasks": _tasks,
        "models": _models,
        "sweeps": _sweeps,
        "kernels": _kernels,
    }
    if what not in kinds:
        raise ConfigError(unknown_name("list", what, kinds))
    return kinds[what]()


def as_markdown(columns: tuple[str, ...], rows: Rows) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def _methods() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = []
    for name, cls in sorted(methods().items()):
        if isinstance(cls, Broken):
            rows.append((name, "broken", "", "", "", f"{cls.origin}: {cls.reason}"))
            continue
        low, high = cls.bits
        shared = parameters(Reconstruction) if issubclass(cls, Reconstruction) else {}
        own = [
            f"{key}={value}"
            for key, value in parameters(cls).items()
            if (key, value) not in shared.items()
        ]
        needs, params = (
            NEEDS[verb_of(cls)],
            " ".join(own + ["and those of training"] * bool(shared)),
        )
        rows.append((name, cls.format, f"{low}-{high}", needs, params, cls.paper))
    return ("method", "format", "bits", "needs", "parameters", "paper"), rows


def _tasks() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = [(name, task.kind, task.describe()) for name, task in all_tasks().items()]
    return ("task", "kind", "what"), rows + [
        (name, "broken", reason) for name, reason in broken_tasks().items()
    ]


def _sweeps() -> tuple[tuple[str, ...], Rows]:
    variants = [(name, variant) for name, variants in SWEEPS.items() for variant in variants]
    rows: Rows = [
        (
            name,
            entry["method"],
            " ".join(f"{key}={value}" for key, value in entry.items() if key != "method"),
        )
        for name, entry in variants
    ]
    return ("sweep", "method", "parameters"), rows


def _models() -> tuple[tuple[str, ...], Rows]:
    return ("model", "what"), list(known_models().items())


def _kernels() -> tuple[tuple[str, ...], Rows]:
    from qbench.kernels.registry import all_kernels, broken_kernels

    rows: Rows = []
    for name, kernel in all_kernels().items():
        formats, bits = (
            ",".join(kernel.formats or ["all"]),
            "-".join(map(str, kernel.bits or ["all"])),
        )
        where = ",".join(kernel.devices or ["all"])
        dtypes = (
            ",".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes or ()) or "all"
        )
        state = kernel.available() or ("automatic" if kernel.automatic else "by name")
        rows.append((name, formats, bits, where, dtypes, f"{state}: {kernel.describe()}"))
    rows += [(origin, "broken", "", "", "", reason) for origin, reason in broken_kernels().items()]
    return ("kernel", "formats", "bits", "devices", "dtypes of x", "chosen"), rows
