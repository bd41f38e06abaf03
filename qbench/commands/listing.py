"""The tables behind `qbench list`, and the table of methods in the README.

`python -P -m qbench.commands.listing README.md` writes that table into the file, in place.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qbench.errors import ConfigError, unknown_name
from qbench.files.atomic import write_text
from qbench.method_source import read_parameters
from qbench.registry import Broken, declarations

Columns = tuple[str, ...]
Rows = list[tuple[str, ...]]
NEEDS = {
    "quantize_weight": "weights",
    "quantize_linear": "calibration",
    "quantize_block": "calibration",
    "worker_settings": "own environment",
}


def listing(what: str) -> tuple[Columns, Rows]:
    """Column names and rows for `methods`, `tasks`, `models`, `presets`, `sweeps` or `kernels`."""
    kinds = {
        "methods": _methods,
        "tasks": _tasks,
        "models": _models,
        "presets": _presets,
        "sweeps": _sweeps,
        "kernels": _kernels,
    }
    if what not in kinds:
        raise ConfigError(unknown_name("list", what, kinds))
    return kinds[what]()


def as_markdown(columns: Columns, rows: Rows) -> str:
    """A Markdown table, a row per line."""
    lines = [_markdown_row(columns), _markdown_row(("---",) * len(columns))]
    lines += [_markdown_row(row) for row in rows]
    return "".join(lines)


def with_methods_table(readme: str) -> str:
    """The text of the README with its table of methods brought up to date.

    Raises ConfigError where no table begins with the columns of `qbench list methods`.
    """
    columns, rows = listing("methods")
    header = _markdown_row(columns)
    before, separator, rest = readme.partition(header)
    if not separator:
        raise ConfigError(f"no table of methods: no line is {header.strip()!r}; add it")
    lines = rest.splitlines(keepends=True)
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    return before + as_markdown(columns, rows) + "".join(lines)


def _markdown_row(cells: Columns) -> str:
    escaped = [cell.replace("|", r"\|").replace("\n", "<br>") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"


def _methods() -> tuple[Columns, Rows]:
    training = read_parameters("qbench.calibration.reconstruction", "Reconstruction")
    rows: Rows = []
    for name, entry in sorted(declarations().items()):
        if isinstance(entry, Broken):
            rows.append((name, "broken", "", "", "", f"{entry.origin}: {entry.reason}"))
            continue
        low, high = entry.bits
        parameters = dict(entry.parameters)
        shares_training = entry.trains and training.keys() <= parameters.keys()
        if shares_training:  # these stand once, below the table
            for key, value in training.items():
                if parameters[key] == value:
                    del parameters[key]
        words = [f"{key}={value}" for key, value in parameters.items()]
        if shares_training:
            words.append("and those of training")
        needs = NEEDS[entry.verb]
        rows.append((name, entry.format, f"{low}-{high}", needs, " ".join(words), entry.paper))
    return ("method", "format", "bits", "needs", "parameters", "paper"), rows


def _tasks() -> tuple[Columns, Rows]:
    from qbench.tasks.registry import all_tasks, broken_tasks

    rows: Rows = [(name, task.kind, task.describe()) for name, task in all_tasks().items()]
    rows += [(name, "broken", reason) for name, reason in broken_tasks().items()]
    return ("task", "kind", "what"), rows


def _sweeps() -> tuple[Columns, Rows]:
    from qbench.experiment.grid import SWEEPS

    rows: Rows = []
    for name, variants in SWEEPS.items():
        for variant in variants:
            settings = [f"{key}={value}" for key, value in variant.items() if key != "method"]
            rows.append((name, variant["method"], " ".join(settings)))
    return ("sweep", "method", "parameters"), rows


def _presets() -> tuple[Columns, Rows]:
    from qbench.experiment.grid import PRESETS

    rows: Rows = []
    for name, preset in PRESETS.items():
        calibration = "{samples} x {length}".format(**preset["calibration"])
        tasks = []
        for task, options in preset["tasks"].items():
            words = [f"{key}={value}" for key, value in options.items()]
            tasks.append(" ".join([task, *words]))
        methods = " ".join(preset["methods"])
        group = str(preset["group_size"])
        rows.append((name, preset["about"], methods, group, calibration, "\n".join(tasks)))
    return ("preset", "what", "methods", "group", "calibration", "tasks"), rows


def _models() -> tuple[Columns, Rows]:
    from qbench.models.source import known_models

    return ("model", "what"), list(known_models().items())


def _kernels() -> tuple[Columns, Rows]:
    from qbench.kernels.registry import all_kernels, broken_kernels

    rows: Rows = []
    for name, kernel in all_kernels().items():
        formats = ",".join(kernel.formats or ["all"])
        bits = "-".join(map(str, kernel.bits or ["all"]))
        devices = ",".join(kernel.devices or ["all"])
        dtypes = [str(dtype).removeprefix("torch.") for dtype in kernel.dtypes or ()]
        chosen = "automatic" if kernel.automatic else "by name"
        state = kernel.available() or chosen
        what = f"{state}: {kernel.describe()}"
        rows.append((name, formats, bits, devices, ",".join(dtypes) or "all", what))
    for origin, reason in broken_kernels().items():
        rows.append((origin, "broken", "", "", "", reason))
    return ("kernel", "formats", "bits", "devices", "dtypes of x", "chosen"), rows


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write_text(file, with_methods_table(file.read_text()))
