"""What a method declares of itself, and the checks of it that need no weight."""

from __future__ import annotations

import dataclasses
import importlib
import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from qbench.contracts import DECLARED, VERBS, Verb, calibrates, trains, verb_of
from qbench.errors import ConfigError, require_plain_name
from qbench.weight_range import guarded

_KINDS = {"name": str, "paper": str, "format": str, "symmetric": bool}
OF_TRAINING = ("epochs", "batch_size", "training_tokens")  # what `contracts.TrainedMethod` has


@dataclass(frozen=True)
class Declaration:
    """What a method's class declares, as `qbench.contracts.Method` has it.

    verb: which of them it implements. parameters: default by name, in the order of the
    class. module, class_name: where `load` finds it. file: where it stands, for messages. cls: the
    class, where it was imported already. Raises ConfigError for values of another kind.
    """

    name: str
    paper: str
    format: str
    bits: tuple[int, int]
    symmetric: bool
    verb: Verb
    trains: bool
    parameters: dict[str, Any]
    module: str
    class_name: str
    file: str
    cls: type | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        place = f"class {self.class_name} of {self.file}"
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if not isinstance(value, kind):
                raise ConfigError(f"{place} declares {key}={value!r}; it must be a {kind.__name__}")
        # Of another package it has that one's name in front, such as gptqmodel:gptq.
        require_plain_name(place, self.name, parts=2 if self.external else 1)
        bounds: Any = self.bits
        if not (isinstance(bounds, tuple) and [type(bound) for bound in bounds] == [int, int]):
            raise ConfigError(
                f"{place} declares bits={bounds!r}; give the lowest and the highest, such as (2, 8)"
            )

    @property
    def external(self) -> bool:
        """Whether another package quantizes, in an environment of its own."""
        return self.verb == "worker_settings"

    @property
    def calibrates(self) -> bool:
        """Whether it is given calibration tokens."""
        return calibrates(self.cls) if self.external else self.verb != "quantize_weight"

    @property
    def draws(self) -> bool:
        """Whether another draw makes another model: of what it calibrates on, or by its seed."""
        return self.calibrates or isinstance(self.parameters.get("seed"), int)

    @property
    def group(self) -> int | None:
        """The group size that its format fixes; None where the user chooses."""
        return getattr(self.cls, "group", None) if self.external else None

    def load(self) -> type:
        """The class itself, whose verb refuses weights that no method can compute with.

        Importing its module may raise anything.
        """
        if self.cls is not None:
            return guarded(self.cls)
        module = importlib.import_module(self.module)
        return guarded(getattr(module, self.class_name))


def declaration_of(cls: Any, file: str) -> Declaration:
    """What an imported class declares; ConfigError in one sentence where it breaks the contract."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(
            f"{cls!r} is not a method: a frozen dataclass that declares {', '.join(DECLARED)}"
        )
    parameters = {item.name: item.default for item in dataclasses.fields(cls)}
    _check_declared(cls, parameters, f"class {cls.__name__} of {file}")
    _check_parameters(cls, file)
    values: dict[str, Any] = {key: getattr(cls, key) for key in DECLARED}
    return Declaration(
        **values,
        verb=verb_of(cls),
        trains=trains(cls),
        parameters=parameters,
        module=cls.__module__,
        class_name=cls.__qualname__,
        file=file,
        cls=cls,
    )


def _check_declared(cls: type, parameters: dict[str, Any], place: str) -> None:
    for key in (*DECLARED, "trains"):
        if key in parameters:
            raise ConfigError(
                f"{place} has {key!r} as a hyper-parameter; declare it as ClassVar: "
                f"`{key}: ClassVar[...] = ...`"
            )
    missing = [key for key in DECLARED if not hasattr(cls, key)]
    if missing:
        raise ConfigError(
            f"{place} lacks {', '.join(missing)}; a method declares {', '.join(DECLARED)}, "
            "each as ClassVar"
        )
    missing = [key for key in OF_TRAINING if not hasattr(cls, key)]
    if trains(cls) and missing:
        raise ConfigError(
            f"{place} declares that it trains and lacks {', '.join(missing)}; "
            "qbench.contracts.TrainedMethod says what they are"
        )


def _check_parameters(cls: Any, file: str) -> None:
    """ConfigError for a hyper-parameter that a record, an id and a command line cannot have."""
    for item in dataclasses.fields(cls):
        if not item.init:
            fault = f"{item.name!r}, which has init=False and cannot be set"
        elif item.default is dataclasses.MISSING:
            fault = f"{item.name!r} without a plain default"
        elif not _is_plain(item.default):
            fault = f"{item.name}={item.default!r}"
        else:
            continue
        raise ConfigError(
            f"method {cls.name!r} of {file} has the hyper-parameter {fault}; give each a default "
            "that is True, False, a finite number, a text, None, or a tuple of these"
        )


def _is_plain(value: Any) -> bool:
    """Whether it is of Python's own kinds, and no subclass: numpy's numbers and enums are some."""
    if type(value) is tuple:
        return all(map(_is_plain, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def methods_in(module: ModuleType) -> list[type]:
    """The classes that an imported module defines and that are meant to be methods.

    Such a class has a verb, or is a dataclass with a `name` of its own. One that is only there for
    others of the module to derive from may lack what they declare.
    """
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    meant = []
    for cls in own:
        derived = any(issubclass(other, cls) for other in own if other is not cls)
        incomplete = not all(hasattr(cls, key) for key in DECLARED)
        only_a_base = incomplete and (derived or cls.__name__.startswith("_"))
        if _looks_like_a_method(cls) and not only_a_base and cls not in meant:
            meant.append(cls)
    return meant


def _looks_like_a_method(cls: type) -> bool:
    if any(callable(getattr(cls, verb, None)) for verb in VERBS):
        return True
    if all(hasattr(cls, key) for key in DECLARED):
        return True
    if not dataclasses.is_dataclass(cls):
        return False
    names_of_fields = [item.name for item in dataclasses.fields(cls)]
    return hasattr(cls, "name") and "name" not in names_of_fields
