"""From a grid to the cells of a plan, and from a cell to the command line that repeats it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence

from qbench.contracts import Scheme
from qbench.experiment.code_hashes import DIVIDING, code_hash
from qbench.experiment.forms import Settings
from qbench.experiment.grid import CALIBRATION, Grid
from qbench.experiment.grid_checks import check_owners, check_schemes
from qbench.experiment.identity import Identity
from qbench.experiment.presets import QUICK
from qbench.records import CalibrationSpec, Cell, Scalar, digest
from qbench.registry import declared, method_class, source_hash


def expand(grid: Grid, identity: Identity) -> tuple[Cell, ...]:
    """All cells of the grid, the unquantized model first.

    `none` has one cell per model, whatever the bits. Cells whose scheme the method does not support
    are included. A model that is quantized already is, as it is, not asked what compares with the
    unquantized one, which is not known. A method that calibrates has a cell for each size and each
    draw of the calibration sample; one that has a seed alone, for each draw; one that draws nothing
    has one cell, without a seed. ConfigError, before any work, where something does not fit, such
    as bits that none of the methods supports.
    """
    variants = grid.variants
    check_owners(grid, [method for method, _ in variants])
    check_schemes(grid, [method for method, _ in variants])
    cells = []
    for model in grid.model:
        for method, params in variants:
            source = source_hash(method_class(method))
            for scheme, sample, seed in _draws(grid, identity, method):
                stored_as = identity.stored_as[model]
                is_stored = scheme is None and stored_as is not None
                cell = Cell(
                    model=model,
                    revision=identity.revisions[model],
                    method=method,
                    params=params,
                    source=source,
                    scheme=scheme,
                    calibration=sample,
                    tasks=identity.alone if is_stored else identity.tasks,
                    dtype=identity.dtype,
                    seed=seed,
                    evaluation=identity.evaluation,
                    batch_size=identity.batch_size,
                    device=identity.device,
                    stored_as=stored_as,
                    recipe=_recipe(scheme),
                    quantization=identity.quantization if scheme or is_stored else "",
                )
                cells.append(cell)
    return tuple(cells)


def repeated(grid: Grid) -> list[str]:
    """A sentence for each variant of the sweep that `set` or the preset makes equal to another."""
    sentences = []
    first: dict[tuple[str, str], Mapping[str, Scalar]] = {}
    for method, fixed in grid.entries() if grid.sweep is not None else ():
        made = [(method, repr(params)) for params in grid.combinations(method, fixed)]
        if all(params in first for params in made):
            sentences.append(_repeated(grid, method, fixed, first[made[0]]))
        for params in made:
            first.setdefault(params, fixed)
    return sentences


def _repeated(
    grid: Grid, method: str, fixed: Mapping[str, Scalar], other: Mapping[str, Scalar]
) -> str:
    """That a variant is the same as another; both are known by the parameters that they fix."""
    causes = {}
    for key in (*fixed, *other):
        if fixed.get(key) != other.get(key):
            is_set = key in grid.set.get(method, {})
            causes[f"--set {method}.{key}" if is_set else f"the preset {grid.preset}"] = True
    called = [
        " ".join([method, *(f"{key}={value}" for key, value in variant.items())])
        for variant in (fixed, other)
    ]
    return (
        f"of --sweep {grid.sweep}, {called[0]} is the same as {called[1]} under "
        f"{' and '.join(causes)}, and is run once"
    )


def left_out(cell: Cell, names: Sequence[str]) -> str:
    """Why a model that is quantized already is not asked the tasks of these names."""
    return (
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out for {cell.model}, which "
        f"is quantized already ({cell.stored_as}), as the unquantized model to compare with is not "
        "known; `qbench eval FOLDER --unquantized MODEL` compares with one that you name"
    )


def _draws(
    grid: Grid, identity: Identity, method: str
) -> Iterator[tuple[Scheme | None, CalibrationSpec | None, int]]:
    """Schemes of a method, each with the calibrations and seeds that it is run with."""
    declaration = declared(method)
    for scheme in grid.schemes(method):
        calibrated = declaration.calibrates or (scheme is not None and scheme.budget is not None)
        samples = identity.calibrations if calibrated else (None,)
        seeds = grid.seeds(calibrated or declaration.draws)
        for sample, seed in itertools.product(samples, seeds):
            yield scheme, sample, seed


def _recipe(scheme: Scheme | None) -> str:
    """A hash of the code that divides bits between layers, or quantizes the head."""
    if scheme is None or (scheme.budget is None and scheme.head_bits is None):
        return ""
    parts = [source_hash(method_class("rtn"))]
    if scheme.budget is not None:
        parts.append(code_hash(DIVIDING))
    return digest(parts)


def cell_command(grid: Grid, cell: Cell) -> str:
    """The command line that repeats this one cell."""
    words = ["qbench", "run", "--model", cell.model, "--methods", cell.method]
    if cell.scheme is not None:
        group = cell.scheme.group_size or "channel"
        words += ["--bits", str(cell.scheme.width), "--group-size", str(group)]
        if cell.scheme.symmetric:
            words.append("--symmetric")
        for rule in cell.scheme.rules:
            words += ["--layers", str(rule)]
        if cell.scheme.head_bits is not None:
            words += ["--head-bits", str(cell.scheme.head_bits)]
    words += ["--tasks", ",".join(grid.task_names), "--preset", grid.preset or QUICK]
    words += ["--data", grid.data]
    if grid.chat_template is not None:
        words.append("--chat-template" if grid.chat_template else "--no-chat-template")
    if grid.bos is not None:
        words += ["--bos", grid.bos]
    words += ["--dtype", cell.dtype, "--seed", str(cell.seed), "--device", cell.device]
    if len(grid.model_copy(update={"replicates": None}).seeds(draws=True)) > 1:
        words += ["--replicates", "1"]
    if not grid.with_latency:
        words.append("--no-latency")
    if grid.requantize:
        words.append("--requantize")
    if grid.trust_remote_code:
        words.append("--trust-remote-code")
    for owner, settings in _settings_of(grid, cell).items():
        for key, values in settings.items():
            words += ["--set", f"{owner}.{key}={','.join(map(str, values))}"]
    for path in grid.plugin:
        words += ["--plugin", str(path)]
    return " ".join(map(shlex.quote, words))


def _settings_of(grid: Grid, cell: Cell) -> Settings:
    """The values of `--set` for this one cell: of its method, its tasks and the calibration."""
    defaults = declared(cell.method).parameters
    # The preset would set these again, also where the cell has the method's default.
    params = {key: defaults[key] for key in grid.method_settings(cell.method)} | cell.params
    settings: Settings = {cell.method: {key: (value,) for key, value in params.items()}}
    for owner, values in grid.set.items():
        if owner in (*grid.task_names, CALIBRATION):
            settings[owner] = values
        if owner == CALIBRATION and cell.calibration is not None:
            settings[owner] = {key: (getattr(cell.calibration, key),) for key in values}
    return settings
