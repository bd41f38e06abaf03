"""From a YAML file, with each key once, and flags to a grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qbench.errors import ConfigError, StoreError, unknown_name
from qbench.experiment.forms import SEVERAL, as_settings
from qbench.experiment.grid import Grid
from qbench.files.ordinary import ordinary_text

GRID_BYTES = 1_000_000  # YAML takes microseconds for each
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`, which may stand several times


def read_grid(config: Path | None, flags: Mapping[str, Any]) -> Grid:
    """A grid from a YAML file and flags; a flag that is not None overrides the file.

    In `set`, a flag overrides single parameters. ConfigError that names the file where it cannot
    be read, and the key that is wrong.
    """
    of_file = {} if config is None else _read_file(config, [*Grid.model_fields, "jobs"])
    settings = merged(of_file, flags)
    try:
        return Grid.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(unknown_name("grid key", place, Grid.model_fields)) from None
        raise ConfigError(f"{place}={first['input']!r}: {first['msg']}") from None


def merged(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a file, overridden by the flags that are not None.

    ConfigError where `set` has a form that cannot be read.
    """
    if {"jobs", "workers"} <= settings.keys():
        raise ConfigError("jobs and workers are one key of a grid; leave one of them out")
    both = {"workers" if key == "jobs" else key: value for key, value in settings.items()}
    for key, value in flags.items():
        if value is None:
            continue
        if key == "set" and both.get("set"):
            whole = {owner: dict(values) for owner, values in as_settings(both["set"]).items()}
            for owner, values in as_settings(value).items():
                whole[owner] = whole.get(owner, {}) | dict(values)
            both["set"] = whole
        else:
            both["workers" if key == "jobs" else key] = value
    return both


def _read_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The keys of a grid file; one without a value is left out.

    known: the keys that there are. ConfigError where it is no map of these, has a key twice, or an
    empty text.
    """
    try:
        text = ordinary_text(path, limit=GRID_BYTES)
        settings = yaml.load(text, _OnceEach) or {}
    except (StoreError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"grid file {str(path)!r} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"grid file {str(path)!r} holds a {type(settings).__name__}; it must map keys to values"
        )
    for key, value in settings.items():
        if key not in known:
            hint = f"; {SEVERAL}" if value is None else ""
            raise ConfigError(unknown_name("grid key", str(key), known) + hint)
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ConfigError(
                f"grid file {str(path)!r}: {key} {value!r} names nothing; give a value, or leave "
                "it out"
            )
    return {key: value for key, value in settings.items() if value is not None}


class _OnceEach(yaml.SafeLoader):
    """YAML keeps the last of equal keys, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        places: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in places:
                raise yaml.YAMLError(
                    f"the key {key.value!r} stands in line {places[key.value]} and again in line "
                    f"{line}; keep one"
                )
            places[key.value] = line
        return super().construct_mapping(node, deep)
