"""A grid as the user asks for it: which methods, with which parameters, at how many bits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
)

from qbench.contracts import Scheme, trains
from qbench.errors import (
    LARGEST_SEED,
    LEAST_SEED,
    MOST_SECONDS,
    ConfigError,
    require_at_least,
    require_seed,
    unknown_name,
)
from qbench.experiment.forms import (
    Bytes,
    Files,
    Names,
    Numbers,
    Rules,
    Sets,
    Values,
    Workers,
    no_switch,
    parse_set,
    single_numbers,
    single_settings,
    whole_numbers,
)
from qbench.experiment.presets import PRESETS, QUICK, SWEEPS
from qbench.records import Scalar
from qbench.registry import declared, get_method, method_class, parameters

__all__ = ["CALIBRATION", "PRESETS", "SWEEPS", "Grid", "parse_set", "single_settings"]

TRAINED = "trained"  # the value of `bos` unless another is asked for
CALIBRATION = "calibration"  # in `set`, a key beside methods and tasks
CALIBRATION_KEYS = {"samples": 1, "length": 2}  # each with its least value
MOST_DRAWS = 1000  # of the calibration sample: each is a cell
NO_SWITCHES = (  # keys that are numbers
    "group_size", "head_bits", "seed", "replicates", "time_limit", "workers", "memory", "max_cells",
)  # fmt: skip
TASK_KEYS = {  # each with its least value
    "limit": 1, "num_fewshot": 0, "length": 2, "generate": 0, "spread": 1, "max_gen_toks": 1,
}  # fmt: skip


class Grid(BaseModel):
    """What the user asks for: `--config` files have these keys, and flags override them.

    bits: a fraction, such as 2.8, is a budget that is divided between layers. methods, tasks,
    group_size: None for those of the preset. group_size: inputs per group, or `channel`. layers:
    bits of single layers, by globs of their names; head_bits: bits of the model's head
    (`qbench.scheme`). sweep: a named list of variants, in place of methods. preset: None for the
    one that suits the machine (`preset_for`). set: `{method: {parameter: [values]}}`, `{task:
    {limit: [n]}}` or `{calibration: {samples: [n]}}`. text: the kinds of text on which divergence
    is measured (`qbench.tasks.divergence`). dtype: of the evaluated model; `auto` is bfloat16 where
    the hardware computes in it, else float32. chat_template: whether prompts are put into the
    model's own template. bos: the token before a prompt: the one that the model was `trained` with,
    the one that its `tokenizer` adds, or `none`. latency: whether products and tokens of the packed
    models are timed. chat_template, bos, latency: None for what the preset says. time_limit:
    seconds that one cell may take, None for many times its estimate. workers: cells at a time, None
    for as many as the devices and their memory take. memory: bytes, or a size such as `8GB`, that
    the model of a cell may take before it is read block by block; None for what there is. only,
    skip: patterns of the cells to run, and of cells to leave out (`qbench.experiment.selection`).
    max_cells: at most so many cells, the first ones. requantize: whether a model that is quantized
    already may be quantized again. trust_remote_code: whether code from a model's folder may run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Names = ("smollm2-135m",)
    bits: Numbers = (2, 3, 4)
    methods: Names | None = None
    sweep: str | None = None
    tasks: Names | None = None
    text: Names | None = None
    preset: str | None = None
    group_size: int | Literal["channel"] | None = None
    symmetric: bool = False
    layers: Rules = ()
    head_bits: int | None = None
    set: Sets = {}
    plugin: Files = ()
    data: str = "auto"
    seed: int = Field(default=0, ge=LEAST_SEED, le=LARGEST_SEED)
    replicates: int | None = Field(default=None, ge=1, le=MOST_DRAWS)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    chat_template: bool | None = None
    bos: Literal["trained", "tokenizer", "none"] | None = None
    out: Path | None = Field(default=None, json_schema_extra={"minLength": 1})
    time_limit: float | None = Field(default=None, gt=0, le=MOST_SECONDS)
    latency: bool | None = None
    workers: Workers = Field(default=None, validation_alias=AliasChoices("workers", "jobs"))
    memory: Bytes = None
    only: Names = ()
    skip: Names = ()
    max_cells: int | None = Field(default=None, ge=1)
    requantize: bool = False
    trust_remote_code: bool = False

    _numbers = field_validator(*NO_SWITCHES, mode="before")(no_switch)

    @property
    def defaults(self) -> dict[str, Any]:
        """The preset's settings, those of QUICK where it is left to the plan.

        ConfigError for an unknown preset.
        """
        preset = QUICK if self.preset is None else self.preset
        if preset not in PRESETS:
            raise ConfigError(unknown_name("preset", preset, PRESETS))
        return PRESETS[preset]

    @property
    def folder(self) -> Path:
        """`out`, or `runs/` and the name of the first model.

        A path such as `..` is called as the folder that it means: `runs/..` would be this one.
        """
        if self.out is not None:
            return self.out
        name = Path(self.model[0]).name
        if name in ("", ".."):
            name = Path(self.model[0]).resolve().name or "model"  # the root has no name
        return Path("runs") / name.replace("@", "-")

    @property
    def variants(self) -> list[tuple[str, dict[str, Scalar]]]:
        """(method, parameters) of every variant, `none` first, each once.

        They are those of the sweep, or of the methods, in every combination of the values that are
        set. Parameters are those that differ from the method's defaults. Raises ConfigError for an
        unknown sweep, method or parameter, or a value that does not fit.
        """
        variants: list[tuple[str, dict[str, Scalar]]] = []
        for method, fixed in self.entries():
            for params in self.combinations(method, fixed):
                if (method, params) not in variants:
                    variants.append((method, params))
        return variants

    @property
    def method_names(self) -> list[str]:
        """The methods of all variants, each once; they may not exist."""
        return list(dict.fromkeys(name for name, _ in self.entries()))

    def entries(self) -> list[tuple[str, dict[str, Scalar]]]:
        """(method, parameters that are fixed) before anything is swept, `none` first."""
        if self.sweep is None:
            names = self.defaults["methods"] if self.methods is None else self.methods
            return [(name, {}) for name in sorted(names, key=_unquantized_first)]
        if self.sweep not in SWEEPS:
            raise ConfigError(unknown_name("sweep", self.sweep, SWEEPS))
        if self.methods is not None:
            raise ConfigError(
                f"--sweep {self.sweep} brings its own methods; "
                f"leave out --methods {','.join(self.methods)}"
            )
        entries: list[tuple[str, dict[str, Scalar]]] = [("none", {})]
        for variant in SWEEPS[self.sweep]:
            fixed = {key: value for key, value in variant.items() if key != "method"}
            entries.append((variant["method"], fixed))
        return entries

    def combinations(self, method: str, fixed: Mapping[str, Scalar]) -> list[dict[str, Scalar]]:
        """Every combination of the values set for a method, over what preset and sweep fix."""
        values = self.values_of(method, fixed)
        defaults = parameters(method_class(method))
        combinations = []
        for choice in itertools.product(*values.values()):
            params = dict(zip(values, choice, strict=True))
            # As the method has them, "0.10" is 0.1, so that equal settings make equal cells.
            converted = parameters(get_method(method, **params))
            changed = {key: value for key, value in converted.items() if value != defaults[key]}
            combinations.append(changed)
        return combinations

    def values_of(self, method: str, fixed: Mapping[str, Scalar]) -> dict[str, Values]:
        """The values of each parameter; what a variant of the sweep is about stays as it is.

        Of the rest, --set overrides the preset.
        """
        of_preset: dict[str, Values] = {k: (v,) for k, v in self.method_settings(method).items()}
        of_variant: dict[str, Values] = {key: (value,) for key, value in fixed.items()}
        return of_preset | self.set.get(method, {}) | of_variant

    def method_settings(self, method: str) -> dict[str, Scalar]:
        """The preset's settings for a method: those for all that train, and its own."""
        preset = self.defaults.get("settings", {})
        settings: dict[str, Scalar] = {}
        if trains(declared(method)):
            settings |= preset.get("trained", {})
        settings |= preset.get(method, {})
        return settings

    def seeds(self, draws: bool) -> tuple[int, ...]:
        """The seeds of the cells of one variant, one for each draw; 0 where nothing is drawn.

        draws: whether anything is. ConfigError where the last seed is too large.
        """
        if not draws:
            return (0,)
        count = self.replicates or self.defaults.get("replicates", 1)
        require_seed("the last seed", self.seed + count - 1)
        return tuple(range(self.seed, self.seed + count))

    @property
    def with_latency(self) -> bool:
        """Whether latency is measured when all cells are done."""
        return bool(self.defaults["latency"]) if self.latency is None else self.latency

    @property
    def prompts(self) -> dict[str, Any]:
        """How prompts are written, by the names of a `TaskSpec`: `chat_template` and `bos`."""
        template, bos = self.chat_template, self.bos
        if template is None:
            template = self.defaults.get("chat_template", False)
        if bos is None:
            bos = self.defaults.get("bos", TRAINED)
        return {"chat_template": template, "bos": None if bos == TRAINED else bos}

    @property
    def group(self) -> int | None:
        """Inputs per group, None for one group per output channel."""
        size = self.defaults["group_size"] if self.group_size is None else self.group_size
        return None if size == "channel" else size

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks asked for, or the preset's."""
        names = tuple(self.defaults["tasks"]) if self.tasks is None else self.tasks
        if self.text is None:
            return names
        from qbench.tasks.divergence import with_texts

        return with_texts(names, self.text)

    def task_options(self, task: str, like: str | None = None) -> dict[str, Any]:
        """The options of a task that are given, by TASK_KEYS: the preset's, overridden by `set`.

        like: the task whose options in the preset are taken where it has none for this one.
        """
        of_preset = self.defaults["tasks"]
        preset = of_preset.get(task, of_preset.get(like, {}))
        numbers = single_numbers(task, self.set.get(task, {}), TASK_KEYS)
        for key, value in numbers.items():
            instead = ", or 'all'" if key in ("limit", "generate") else ""
            require_at_least(f"--set {task}.{key}", value, TASK_KEYS[key], instead)
        return {**preset, **numbers}

    @property
    def calibrations(self) -> list[dict[str, int]]:
        """Samples and length of the calibration: the preset's, overridden by `set`, combined.

        ConfigError where one is no number, or is too small.
        """
        settings = self.set.get(CALIBRATION, {})
        overrides = whole_numbers(CALIBRATION, settings, CALIBRATION_KEYS, or_all=False)
        values = {key: (value,) for key, value in self.defaults["calibration"].items()} | overrides
        samples = []
        for choice in itertools.product(*values.values()):
            sample = dict(zip(values, choice, strict=True))
            for key, value in sample.items():
                require_at_least(f"--set {CALIBRATION}.{key}", value, CALIBRATION_KEYS[key])
            if sample not in samples:
                samples.append(sample)
        return samples

    def schemes(self, method: str) -> list[Scheme | None]:
        """The schemes that a method is asked for; [None] for the unquantized model.

        A method whose format fixes the group size has that group size. Bits that it does not
        support are left out, if others are asked for that it supports.
        """
        if method == "none":
            return [None]
        declaration = declared(method)
        bits = sorted(set(self.bits))
        if declaration.group is not None:
            low, high = declaration.bits
            bits = [number for number in bits if low <= number <= high] or bits
        group = declaration.group or self.group
        rest = {"rules": self.layers, "head_bits": self.head_bits, "symmetric": self.symmetric}
        return [Scheme.at(number, group, **rest) for number in bits]


def _unquantized_first(method: str) -> bool:
    return method != "none"
