"""The flags for a grid, of `qbench run` and `qbench config show`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from qbench.commands.options import (
    Bos,
    ChatTemplate,
    Data,
    Device,
    HeadBits,
    Layers,
    Memory,
    Models,
    Plugins,
    Requantize,
    Sets,
    Trust,
    as_group,
    as_names,
    as_widths,
    as_workers,
)

if TYPE_CHECKING:
    from qbench.experiment.grid import Grid

PATTERNS = (
    "A glob is held against method, bits (3b), label ('gptq 3b g64', as --dry-run shows it), model "
    "and id."
)


class Asked(NamedTuple):
    """What was typed: a grid file, and by the grid's key what flags say, None where they do not."""

    config: Path | None
    flags: dict[str, Any]

    def grid(self) -> Grid:
        """The grid of the file and the flags; ConfigError where something in it is wrong."""
        from qbench.experiment.grid_file import read_grid

        return read_grid(self.config, self.flags)


def asked(
    model: Models = None,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Bits per weight code, with commas; default 2,3,4. A fraction such as 2.8 is "
            "divided between the layers."
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="With commas; default the preset's; `qbench list methods`.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="A named list of variants; `qbench list sweeps`. What a variant fixes stays, and "
            "--set changes the rest."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="With commas; default the preset's; `qbench list tasks`.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Of divergence: wiki (default), code, own; with commas, each by itself."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A name of `qbench list presets`; default what suits the machine."),
    ] = None,
    group_size: Annotated[
        str | None, typer.Option(help="Inputs per group, or 'channel'; default the preset's.")
    ] = None,
    symmetric: Annotated[bool | None, typer.Option("--symmetric", help="Symmetric grids.")] = None,
    layers: Layers = None,
    head_bits: HeadBits = None,
    sets: Sets = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help=f"Only these cells: globs, with commas. {PATTERNS}"),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", help="Not these cells, such as 'uniquanf 2b*,8b'; as --only."),
    ] = None,
    max_cells: Annotated[
        int | None, typer.Option(help="The first cells of what is left, so many at most.")
    ] = None,
    plugin: Plugins = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(help="Of sample and method; default 0.")] = None,
    replicates: Annotated[
        int | None,
        typer.Option(help="Draws of sample and seed for each cell that has one; default 1."),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the evaluated model: auto (default), float32, bfloat16, float16."),
    ] = None,
    chat_template: ChatTemplate = None,
    bos: Bos = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Records, artifacts and report; default runs/MODEL."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for one cell; default many times its estimate."),
    ] = None,
    latency: Annotated[
        bool | None,
        typer.Option(
            "--latency/--no-latency",
            help="Time products and tokens of packed models at the end; default on.",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            "--jobs",
            help="Cells at a time: auto (default), one for each GPU, or as many as cores and "
            "memory take; or a number.",
        ),
    ] = None,
    memory: Memory = None,
    requantize: Requantize = False,
    trust_remote_code: Trust = False,
    config: Annotated[Path | None, typer.Option(help="A YAML grid; flags override it.")] = None,
) -> Asked:
    """The values of these flags, by the grid's keys."""
    from qbench.experiment.grid import parse_set

    flags = {
        "model": as_names(model, "--model"),
        "bits": as_widths(bits),
        "methods": as_names(methods, "--methods"),
        "sweep": sweep,
        "tasks": as_names(tasks, "--tasks"),
        "text": as_names(text, "--text"),
        "preset": preset,
        "group_size": as_group(group_size),
        "symmetric": symmetric,
        "layers": tuple(layers) if layers else None,
        "head_bits": head_bits,
        "set": parse_set(sets) if sets else None,
        "only": as_names(",".join(only), "--only") if only else None,
        "skip": as_names(",".join(skip), "--skip") if skip else None,
        "max_cells": max_cells,
        "plugin": tuple(plugin) if plugin else None,
        "data": data,
        "seed": seed,
        "replicates": replicates,
        "device": device,
        "dtype": dtype,
        "chat_template": chat_template,
        "bos": bos,
        "out": out_folder,
        "time_limit": time_limit,
        "latency": latency,
        "workers": as_workers(workers),
        "memory": memory,
        "requantize": requantize or None,
        "trust_remote_code": trust_remote_code or None,
    }
    return Asked(config, flags)


def with_grid_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the flags of a grid before its own; its first parameter is what they say."""
    of_grid = inspect.signature(asked, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def wrapper(**values: Any) -> None:
        rest = {parameter.name: values.pop(parameter.name) for parameter in own}
        command(asked(**values), **rest)

    both = [*of_grid.values(), *own]
    wrapper.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
    return wrapper
