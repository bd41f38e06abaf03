"""From flags and YAML to a grid, and from a grid to the cells of a plan."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.contracts import Scheme, check_scheme, verb_of
from qbench.errors import ConfigError, unknown_name
from qbench.records import CalibrationSpec, Cell, Scalar, TaskSpec
from qbench.registry import get_method, method_class, parameters, source_hash

PRESETS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("presets.yaml").read_text()
)
SWEEPS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("sweeps.yaml").read_text()
)
TASK_KEYS = ("limit", "num_fewshot", "length", "generate")


class Grid(BaseModel):
    """What the user asks for: `--config` files have these keys, and flags override them.

    group_size: inputs per group, or `channel`. set: `{method: {parameter: [values]}}`, `{task:
    {limit: [n]}}` or `{calibration: {samples: [n]}}`. methods, tasks, group_size None: those of the
    preset. sweep: a named list of variants in place of methods. dtype: of the evaluated model;
    `auto` takes bfloat16 where the hardware computes in it, else float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: tuple[str, ...] = ("smollm2-135m",)
    bits: tuple[int, ...] = (2, 3, 4)
    methods: tuple[str, ...] | None = None
    sweep: str | None = None
    tasks: tuple[str, ...] | None = None
    preset: str = "quick"
    group_size: int | Literal["channel"] | None = None
    symmetric: bool = False
    set: dict[str, dict[str, tuple[Scalar, ...]]] = {}
    plugin: tuple[Path, ...] = ()
    data: str = "auto"
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    out: Path | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """The preset's settings; ConfigError for an unknown preset."""
        if self.preset not in PRESETS:
            raise ConfigError(unknown_name("preset", self.preset, PRESETS))
        return PRESETS[self.preset]

    @property
    def variants(self) -> list[tuple[str, dict[str, Scalar]]]:
        """(method, parameters) of every variant, `none` first: the sweep's, or every combination of what is set.

        Parameters are those that differ from the method's defaults. ConfigError for an unknown
        sweep.
        """
        if self.sweep is not None and self.sweep not in SWEEPS:
            raise ConfigError(unknown_name("sweep", self.sweep, SWEEPS))
        if self.sweep is not None and self.methods is not None:
            raise ConfigError(
                f"--sweep {self.sweep} brings its own methods; leave out --methods {','.join(self.methods)}"
            )
        stated = self.methods if self.methods is not None else self.defaults["methods"]
        names = sorted(dict.fromkeys(stated), key=lambda name: name != "none")
        listed = (
            [{"method": name} for name in names]
            if self.sweep is None
            else [{"method": "none"}, *SWEEPS[self.sweep]]
        )
        found: list[tuple[str, dict[str, Scalar]]] = []
        for entry in listed:
            fixed = {key: value for key, value in entry.items() if key != "method"}
            found += [
                (entry["method"], params) for params in self._combinations(entry["method"], fixed)
            ]
        return [variant for i, variant in enumerate(found) if variant not in found[:i]]

    def _combinations(self, method: str, fixed: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
        """Every combination of the values set for a method, over what the preset and the sweep fix."""
        settings: dict[str, tuple[Scalar, ...]] = {
            key: (value,) for key, value in self.method_settings(method).items()
        }
        settings |= {key: (value,) for key, value in fixed.items()} | self.set.get(method, {})
        defaults = parameters(method_class(method))
        sweep = []
        for values in itertools.product(*settings.values()):
            made = parameters(get_method(method, **dict(zip(settings, values, strict=True))))
            sweep.append({key: value for key, value in made.items() if value != defaults[key]})
        return sweep

    def method_settings(self, method: str) -> dict[str, Scalar]:
        """What the preset fixes for a method: for every method that trains, and for this one."""
        stated = self.defaults.get("settings", {})
        trained = stated.get("trained", {}) if "epochs" in parameters(method_class(method)) else {}
        return {**trained, **stated.get(method, {})}

    @property
    def group(self) -> int | None:
        """Inputs per group, None for one group per output channel."""
        size = self.defaults["group_size"] if self.group_size is None else self.group_size
        return None if size == "channel" else size

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks asked for, or the preset's."""
        return self.tasks if self.tasks is not None else tuple(self.defaults["tasks"])

    def task_options(self, task: str) -> dict[str, Any]:
        """limit, num_fewshot, length and generate of a task: the preset's, overridden by `set`."""
        return dict(self.defaults["tasks"].get(task, {})) | _single(
            task, self.set.get(task, {}), TASK_KEYS
        )

    @property
    def calibration(self) -> dict[str, int]:
        """samples and length: the preset's, overridden by `set`."""
        return self.defaults["calibration"] | _single(
            "calibration", self.set.get("calibration", {}), ("samples", "length")
        )


def read_grid(config: Path | None, flags: Mapping[str, Any]) -> Grid:
    """A grid from a YAML file and flags (those that are not None override). ConfigError names the file and the key."""
    stated: dict[str, Any] = {}
    if config is not None:
        try:
            stated = yaml.safe_load(config.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"grid file {str(config)!r} cannot be read: {error}") from None
        if not isinstance(stated, dict):
            raise ConfigError(
                f"grid file {str(config)!r} holds a {type(stated).__name__}; it must map keys to values"
            )
        lists = ("model", "bits", "methods", "tasks", "plugin")
        stated = {
            key: [value] if key in lists and not isinstance(value, list) else value
            for key, value in stated.items()
        }
    try:
        return Grid.model_validate(
            stated | {key: value for key, value in flags.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(unknown_name("grid key", place, Grid.model_fields)) from None
        raise ConfigError(f"{place}={first['input']!r}: {first['msg']}") from None


def parse_set(settings: Sequence[str]) -> dict[str, dict[str, tuple[Scalar, ...]]]:
    """`["gptq.damp=0.01,0.1", "arc_easy.limit=100"]` -> `{"gptq": {"damp": ("0.01", "0.1")}, ...}`."""
    found: dict[str, dict[str, tuple[Scalar, ...]]] = {}
    for setting in settings:
        target, equals, values = setting.partition("=")
        owner, dot, key = target.partition(".")
        if not (equals and dot and owner and key and values):
            raise ConfigError(
                f"--set {setting!r} is not NAME.PARAM=VALUE[,VALUE]; for example --set gptq.act_order=false"
            )
        found.setdefault(owner, {})[key] = tuple(values.split(","))
    return found


def expand(
    grid: Grid,
    revisions: Mapping[str, str],
    tasks: Sequence[TaskSpec],
    calibration: CalibrationSpec,
    dtype: str,
) -> tuple[Cell, ...]:
    """All cells of the grid, the unquantized model first; ConfigError before any work where something does not fit.

    revisions: of each model. `none` is one cell per model, whatever the bits; bits out of its range
    are refused.
    """
    variants = grid.variants
    _check_owners(grid, [name for name, _ in variants])
    cells = []
    for model in grid.model:
        for name, params in variants:
            cls = method_class(name)
            for bits in [None] if name == "none" else sorted(set(grid.bits)):
                scheme = None
                if bits is not None:
                    scheme = Scheme(bits, grid.group, grid.symmetric)
                    check_scheme(cls, scheme)
                cells.append(
                    Cell(
                        model=model,
                        revision=revisions[model],
                        method=name,
                        params=params,
                        source=source_hash(cls),
                        scheme=scheme,
                        calibration=None if verb_of(cls) == "quantize_weight" else calibration,
                        tasks=tuple(tasks),
                        dtype=dtype,
                        seed=grid.seed,
                    )
                )
    return tuple(cells)


def cell_command(grid: Grid, cell: Cell) -> str:
    """The command line that makes this one cell again."""
    defaults = parameters(method_class(cell.method))
    stated = {key: defaults[key] for key in grid.method_settings(cell.method)} | cell.params
    owners: dict[str, dict[str, tuple[Scalar, ...]]] = {
        cell.method: {k: (v,) for k, v in stated.items()}
    }
    owners |= {
        owner: values
        for owner, values in grid.set.items()
        if owner in (*grid.task_names, "calibration")
    }
    parts = ["qbench run", f"--model {cell.model}", f"--methods {cell.method}"]
    if cell.scheme:
        parts += [
            f"--bits {cell.scheme.bits}",
            f"--group-size {cell.scheme.group_size or 'channel'}",
        ]
        parts += ["--symmetric"] if cell.scheme.symmetric else []
    parts += [
        f"--tasks {','.join(grid.task_names)}",
        f"--preset {grid.preset}",
        f"--data {grid.data}",
    ]
    parts += [f"--dtype {cell.dtype}", f"--seed {cell.seed}"]
    parts += [
        f"--set {owner}.{key}={','.join(map(str, v))}"
        for owner, pairs in owners.items()
        for key, v in pairs.items()
    ]
    parts += [f"--plugin {path}" for path in grid.plugin]
    return " ".join(
        shlex.quote(word)
        for part in parts
        for word in part.split(" ", 1 if part.startswith("--") else -1)
    )


def _single(
    owner: str, settings: Mapping[str, tuple[Scalar, ...]], allowed: Sequence[str]
) -> dict[str, Any]:
    """`--set` values of a task or of the calibration: one integer each, or `all`."""
    found: dict[str, int | None] = {}
    for key, values in settings.items():
        if key not in allowed:
            raise ConfigError(unknown_name(f"setting of {owner!r}", key, allowed))
        if len(values) != 1:
            raise ConfigError(
                f"--set {owner}.{key} has {len(values)} values; only method parameters can be swept"
            )
        try:
            found[key] = None if values[0] == "all" else int(str(values[0]))
        except ValueError:
            raise ConfigError(
                f"--set {owner}.{key}={values[0]!r} is not a whole number; give one, or 'all'"
            ) from None
    return found


def _check_owners(grid: Grid, methods: Sequence[str]) -> None:
    owners = (*dict.fromkeys(methods), *grid.task_names, "calibration")
    for owner in grid.set:
        if owner not in owners:
            raise ConfigError(unknown_name("name in --set", owner, owners))
