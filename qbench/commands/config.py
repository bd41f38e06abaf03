"""The commands `qbench config show` and `qbench config schema`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer
import yaml

from qbench.commands.grid_flags import Asked, with_grid_flags
from qbench.commands.options import say

if TYPE_CHECKING:
    from qbench.experiment.grid import Grid

app = typer.Typer(help="What a grid file and flags make together, and what a file may hold.")
ASIDE = 44  # column in which a line says where its value comes from


@app.command(epilog="Example: `qbench config show --config grid.yaml --bits 3 > merged.yaml`")
@with_grid_flags
def show(asked: Asked) -> None:
    """Print the grid that a file and flags make, as a file for --config, and what the preset adds.
    Nothing is planned.
    """
    from qbench.experiment.grid_checks import check_request

    grid = asked.grid()
    if grid.plugin:
        from qbench.experiment.plugins import load_plugins

        load_plugins(grid.plugin)
    check_request(grid, loaded=True)
    for line in shown(grid, asked):
        say(line)


@app.command(epilog="Example: `qbench config schema > grid.schema.json`")
def schema() -> None:
    """Print the JSON schema of a grid file, for editors: `# yaml-language-server: $schema=FILE`."""
    print(json.dumps(schema_of_grid(), indent=2))


def schema_of_grid() -> dict[str, Any]:
    """The JSON schema of a grid file, in all forms that are read; a key may have no value."""
    from qbench.experiment.grid import Grid
    from qbench.experiment.written import InAllForms

    schema = Grid.model_json_schema(schema_generator=InAllForms)
    keys = schema["properties"]
    nothing = {"type": "null"}
    for key, entry in keys.items():
        forms = entry.get("anyOf", [entry])
        if nothing not in forms:
            keys[key] = {"anyOf": [*forms, nothing]}
    keys["jobs"] = keys["workers"]  # its other name
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def shown(grid: Grid, asked: Asked) -> list[str]:
    """The lines of a grid file that makes this grid, and comments: where from, and the preset."""
    from qbench.experiment.presets import QUICK

    preset = grid.preset or QUICK
    values = grid.model_dump(mode="json", exclude_none=True, exclude={"preset"})
    lines = []
    if grid.preset is None:
        lines.append("# no preset is asked for: a run takes what suits its machine; here it is")
    lines.append(_line("preset", preset, _origin("preset", asked)))
    of_preset = {"methods": grid.defaults["methods"], "tasks": list(grid.defaults["tasks"])}
    if grid.sweep is not None:
        del of_preset["methods"]
    for key, value in of_preset.items():
        if key not in values:
            lines.append(_line(key, value, f"preset {preset}"))
    if {name for name, _ in grid.variants} == {"none"}:
        values.pop("bits", None)  # which nothing would have
    elif grid.group_size is None:
        lines.append(_line("group_size", grid.defaults["group_size"], f"preset {preset}"))
    lines += [
        _line(key, value, _origin(key, asked))
        for key, value in values.items()
        if value not in ({}, [])
    ]
    lines.append(f"# what else the preset {preset} says, unless `set` or a key above does:")
    rest = {
        key: value
        for key, value in grid.defaults.items()
        if key not in ("about", "methods", "group_size")
    }
    lines += [f"#   {key}: {_flow(value)}" for key, value in rest.items()]
    return lines


def _origin(key: str, asked: Asked) -> str:
    """Who says a key: a flag, the file, or nobody."""
    from qbench.experiment.grid_file import read_grid

    if asked.flags.get(key) is not None:
        of_file = key == "set" and asked.config is not None
        return f"flags, over {asked.config}" if of_file else "flag"
    if asked.config is not None and key in read_grid(asked.config, {}).model_fields_set:
        return str(asked.config)
    return "default"


def _line(key: str, value: Any, origin: str) -> str:
    return f"{f'{key}: {_flow(value)}':<{ASIDE}}  # {origin}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, (Mapping, list, tuple)):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        return text.strip()
    return yaml.safe_dump(value, width=10**6).removesuffix("...\n").strip()
