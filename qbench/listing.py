"""The tables behind `qbench list` and the README."""

from __future__ import annotations

from qbench.contracts import verb_of
from qbench.errors import ConfigError, unknown_name
from qbench.grid import SWEEPS
from qbench.kernels.dispatch import KERNELS
from qbench.models import known_models
from qbench.reconstruction import Reconstruction
from qbench.registry import Broken, methods, parameters
from qbench.tasks.registry import all_tasks, broken_tasks

Rows = list[tuple[str, ...]]
NEEDS = {"quantize_weight": "weights", "quantize_linear": "calibration", "quantize_block": "calibration"}


def listing(what: str) -> tuple[tuple[str, ...], Rows]:
    """Column names and rows for `methods`, `tasks`, `models`, `kernels` or `sweeps`."""
    kinds = {"methods": _methods, "tasks": _tasks, "models": _models, "kernels": _kernels, "sweeps": _sweeps}
    if what not in kinds:
        raise ConfigError(unknown_name("list", what, kinds))
    return kinds[what]()


def as_markdown(columns: tuple[str, ...], rows: Rows) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _methods() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = []
    for name, cls in sorted(methods().items()):
        if isinstance(cls, Broken):
            rows.append((name, "broken", "", "", "", f"{cls.origin}: {cls.reason}"))
            continue
        low, high = cls.bits
        shared = parameters(Reconstruction) if issubclass(cls, Reconstruction) else {}
        own = [f"{key}={value}" for key, value in parameters(cls).items() if (key, value) not in shared.items()]
        needs, params = NEEDS[verb_of(cls)], " ".join(own + ["and those of training"] * bool(shared))
        rows.append((name, cls.format, f"{low}-{high}", needs, params, cls.paper))
    return ("method", "format", "bits", "needs", "parameters", "paper"), rows


def _tasks() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = [(name, task.kind, task.describe()) for name, task in all_tasks().items()]
    return ("task", "kind", "what"), rows + [(name, "broken", reason) for name, reason in broken_tasks().items()]


def _sweeps() -> tuple[tuple[str, ...], Rows]:
    variants = [(name, variant) for name, variants in SWEEPS.items() for variant in variants]
    rows: Rows = [
        (name, entry["method"], " ".join(f"{key}={value}" for key, value in entry.items() if key != "method"))
        for name, entry in variants
    ]
    return ("sweep", "method", "parameters"), rows


def _models() -> tuple[tuple[str, ...], Rows]:
    return ("model", "what"), list(known_models().items())


def _kernels() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = []
    for kernel in KERNELS.values():
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes or ()) or "any"
        low, high = kernel.bits or (1, 16)
        batch = f"{max(1, kernel.batch[0])}-{kernel.batch[1] or 'any'}"
        facts = (", ".join(kernel.formats or ("any",)), f"{low}-{high}", ", ".join(kernel.devices or ("any",)))
        state = kernel.available() or ("available" if kernel.automatic else "available, by name only")
        rows.append((kernel.name, *facts, dtypes, batch, state, kernel.note))
    return ("kernel", "formats", "bits", "devices", "dtypes", "rows", "here", "what"), rows
