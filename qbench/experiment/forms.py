"""How the keys of a grid may be written: a value, values with commas, a list, or nested maps.

Flags and files share these forms, and the JSON schema for editors has them, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from qbench.environment import bytes_of
from qbench.errors import ConfigError, unknown_name
from qbench.experiment import written
from qbench.experiment.written import MOST_WORKERS
from qbench.records import Scalar
from qbench.scheme import LayerRule

Values = tuple[Scalar, ...]  # of one parameter: a cell for each
Settings = dict[str, dict[str, Values]]  # by method, task or `calibration`, and by parameter
SEVERAL = "several values are written [2, 3, 4], or '2,3,4' in quotes"
_FORMS_OF_SET = "for example set: {gptq: {damp: 0.1}}, or set: {gptq.damp: 0.1}"


def as_list(value: Any) -> Any:
    """`"2, 3"` -> `["2", "3"]` and `2` -> `[2]`; a list stays as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def no_switch(value: Any) -> Any:
    """Of a number: true and false, which Python takes for 1 and 0, are refused."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def as_width(value: Any) -> int | float:
    """A number, whole where it is; what is none, or not finite, is refused."""
    try:
        number = float(no_switch(value))
        return int(number) if number.is_integer() else number
    except (TypeError, ValueError, OverflowError):
        raise PydanticCustomError("number", "Input should be a number, such as 3 or 2.8") from None


def as_settings(value: Any) -> Settings:
    """`{"gptq.damp": "0.01,0.1"}`, `{"gptq": {"damp": [0.01, 0.1]}}` or `["gptq.damp=0.01,0.1"]`.

    All become the second. ConfigError for whatever is none of these, for a name without a value, of
    which flow style makes some (`{gptq.damp: 1,2}`), and for one that has values in two places.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        return parse_set(value)
    settings: Settings = {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"set: {value!r} is no map; {_FORMS_OF_SET}")
    for target, entry in value.items():
        owner, dot, key = _name(target, entry).partition(".")
        if dot:
            _put(settings, owner, key, as_list(entry))
        elif isinstance(entry, Mapping):
            for name, values in entry.items():
                _put(settings, owner, _name(name, values), as_list(values))
        else:
            raise ConfigError(f"set: {owner}: {entry!r} names no parameter; {_FORMS_OF_SET}")
    return settings


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without repeats, which would be counted again."""
    return tuple(dict.fromkeys(values))


def as_rules(value: Any) -> Any:
    """`{"*.down_proj": 4}`, `["*.down_proj=4g32"]`, or rules as they are: all become rules.

    ConfigError for a list of anything else, and for a glob that has several rules.
    """
    if isinstance(value, Mapping):
        value = [f"{layers}={bits}" for layers, bits in value.items()]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return value
    rules: dict[str, LayerRule] = {}
    for entry in value:
        rule = LayerRule.parse(entry) if isinstance(entry, str) else entry
        if not isinstance(rule, LayerRule):
            raise ConfigError(f"layers: {entry!r} is no rule; for example '*.down_proj=4g32'")
        if rule.layers in rules:
            raise ConfigError(
                f"layers: {rule.layers!r} has two rules, {rules[rule.layers].asked} and "
                f"{rule.asked}, and the first alone would count; keep one"
            )
        rules[rule.layers] = rule
    return list(rules.values())


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(as_list, json_schema_input_type=written.Names),
    AfterValidator(each_once),
]
Numbers = Annotated[
    tuple[Annotated[int | float, BeforeValidator(as_width)], ...],
    BeforeValidator(as_list, json_schema_input_type=written.Numbers),
    AfterValidator(each_once),
]
Rules = Annotated[
    tuple[LayerRule, ...],
    BeforeValidator(as_rules, json_schema_input_type=written.Rules),
    PlainSerializer(lambda rules: {rule.layers: rule.asked for rule in rules}),
]
Files = Annotated[
    tuple[Path, ...],
    BeforeValidator(
        lambda value: [value] if isinstance(value, (str, Path)) else value,
        json_schema_input_type=str | list[str],
    ),
    AfterValidator(each_once),
]
Workers = Annotated[
    int | None,
    Field(ge=1, le=MOST_WORKERS),
    BeforeValidator(
        lambda value: None if value == "auto" else value, json_schema_input_type=written.Workers
    ),
]
Bytes = Annotated[
    int | None,
    BeforeValidator(
        lambda size: None if size is None else bytes_of(size), json_schema_input_type=written.Size
    ),
]
Sets = Annotated[Settings, BeforeValidator(as_settings, json_schema_input_type=written.Sets)]


def parse_set(settings: Sequence[str]) -> Settings:
    """`["gptq.damp=0.01,0.1"]` -> `{"gptq": {"damp": ("0.01", "0.1")}}`; the last flag counts.

    ConfigError for another form.
    """
    parsed: Settings = {}
    for setting in settings:
        target, equals, values = str(setting).partition("=")
        owner, dot, key = target.partition(".")
        if not (equals and dot and owner and key and values):
            raise ConfigError(
                f"--set {setting!r} is not NAME.PARAM=VALUE[,VALUE]; "
                "for example --set gptq.act_order=false"
            )
        parsed.setdefault(owner, {})[key] = tuple(values.split(","))
    return parsed


def single_settings(settings: Settings, method: str) -> dict[str, Scalar]:
    """What `set` gives the one method of `qbench quantize`, a value for each parameter.

    ConfigError where it names anything else, or sweeps.
    """
    for owner in settings:
        if owner != method:
            raise ConfigError(unknown_name("name in --set", owner, [method]))
    chosen = {}
    for key, values in settings.get(method, {}).items():
        _require_one(f"{method}.{key}", values, "give one here: `qbench run` sweeps")
        chosen[key] = values[0]
    return chosen


def whole_numbers(
    owner: str, settings: Mapping[str, Values], allowed: Collection[str], or_all: bool = True
) -> dict[str, tuple[int | None, ...]]:
    """Settings of a task or of the calibration: whole numbers, or `all`, which is None.

    or_all: whether `all` is taken. Raises ConfigError for a key that is not allowed, or another
    kind of value.
    """
    numbers = {}
    for key, values in settings.items():
        if key not in allowed:
            raise ConfigError(unknown_name(f"setting of {owner!r}", key, allowed))
        numbers[key] = tuple(_whole_number(f"{owner}.{key}", value, or_all) for value in values)
    return numbers


def single_numbers(
    owner: str, settings: Mapping[str, Values], allowed: Collection[str]
) -> dict[str, int | None]:
    """The same where each may have one value alone; ConfigError where one has several."""
    numbers = {}
    for key, values in whole_numbers(owner, settings, allowed).items():
        swept = "parameters of methods and the calibration can be swept, and nothing of a task"
        _require_one(f"{owner}.{key}", values, swept)
        numbers[key] = values[0]
    return numbers


def _require_one(name: str, values: Sequence[Scalar], instead: str) -> None:
    """ConfigError where a setting has several values. instead: what to do about it."""
    if len(values) != 1:
        words = ", ".join(map(str, values))
        raise ConfigError(f"--set {name} has {len(values)} values, {words}; {instead}")


def _whole_number(name: str, value: Scalar, or_all: bool) -> int | None:
    if or_all and value == "all":
        return None
    try:
        return int(str(value))
    except ValueError:
        instead = "give one, or 'all'" if or_all else "give one"
        raise ConfigError(f"--set {name}={value!r} is not a whole number; {instead}") from None


def _name(name: Any, value: Any) -> str:
    """The name; ConfigError where it is none, or has no value."""
    if not isinstance(name, str):
        raise ConfigError(f"set: {name!r} is no name; {SEVERAL}")
    if value is None:
        raise ConfigError(f"set: {name} has no value; give one, or leave it out; {SEVERAL}")
    return name


def _put(settings: Settings, owner: str, key: str, values: Any) -> None:
    """Give a parameter its values; ConfigError where there are none, or it has some."""
    if not values:
        raise ConfigError(f"set: {owner}.{key} has no value; give one, or leave it out")
    of_owner = settings.setdefault(owner, {})
    if key in of_owner:
        raise ConfigError(
            f"{owner}.{key} is set twice; give all its values at once, with commas between them"
        )
    of_owner[key] = values
