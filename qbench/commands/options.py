"""What the commands share: where they print, common options, and how their values are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from qbench.errors import ConfigError
from qbench.outside_text import printable

LEAST_WIDTH = 20  # characters


class _Console(Console):
    """A console for text from outside: characters on which a terminal would act are escaped."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Strings become one line each. Other objects are rich's, made of printable text."""
        shown = [printable(value) if isinstance(value, str) else value for value in objects]
        try:
            super().print(*shown, **options)
        except OSError:
            if not self.stderr:
                raise
            let_go_of(sys.stderr)  # progress and warnings are no results, and end nothing


def _forget_no_width() -> None:
    """Unset COLUMNS where it leaves no room: rich shows nothing in 0 columns."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < LEAST_WIDTH:
        del os.environ["COLUMNS"]


_forget_no_width()  # a console reads it once, when it is made
out = _Console()
err = _Console(stderr=True)


def let_go_of(stream: TextIO) -> None:
    """Discard what a stream still holds, and all that follows.

    Python would fail on it once more when it ends.
    """
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(line: str) -> None:
    """Print a line as it is: no markup, no colours of its parts, and not wrapped."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def announce(text: str) -> None:
    """Say a sentence on stderr, as it is."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


Model = Annotated[
    str, typer.Option("--model", help="Name, NAME@REVISION, hub id, folder or GGUF file.")
]
Models = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Name, NAME@REVISION, hub id, folder or GGUF file; several with commas. "
        "Default smollm2-135m.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="auto (default), mini, hub, or a folder of parquet (`qbench data list`)."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto (default), cpu or cuda.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="METHOD.PARAM=V,V2 sweeps; TASK.limit=N, calibration.samples=N. May be repeated.",
    ),
]
MethodSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="METHOD.PARAM=VALUE of the method, one value each. May be repeated."
    ),
]
TaskSets = Annotated[
    list[str] | None,
    typer.Option("--set", help="TASK.limit=N, TASK.num_fewshot=N and the like. May be repeated."),
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Put prompts into the model's own template; default the preset's.",
    ),
]
Bos = Annotated[
    str | None,
    typer.Option(help="Before a prompt: as trained (default), as the tokenizer does, none."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="GLOB=BITS[gGROUP] for layers by their full names, such as '*.down_proj=4g32'; =skip "
        "leaves them as they are. May be repeated: the first that matches counts.",
    ),
]
HeadBits = Annotated[
    int | None,
    typer.Option(help="Quantize the head too, at these bits; a tied one becomes its own, counted."),
]
Requantize = Annotated[
    bool, typer.Option("--requantize", help="Quantize a model that is quantized already.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that the model's folder brings; such a model is judged, and not quantized.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="What a model may take, such as 8GB; default what there is. A larger one is read and "
        "written block by block, with the same result.",
    ),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file of methods or kernels, or a YAML task."),
]


def refuse_unused(context: typer.Context, names: Container[str], reason: str) -> None:
    """ConfigError for an option that was typed and would do nothing, with its value.

    names: of the command's parameters that do nothing here. reason: when they do not, such as
    `with --end-to-end`.
    """
    for option in typed(context, names):
        raise ConfigError(f"{option} does nothing {reason}; leave it out")


def typed(context: typer.Context, names: Container[str]) -> list[str]:
    """Those of a command's options that were typed, with their values, such as `--bits 2`."""
    options = []
    for parameter in context.command.params:
        if parameter.name is None or parameter.name not in names:
            continue
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        several = value if isinstance(value, (list, tuple)) else (value,)
        words = [str(part) for part in several if not isinstance(part, bool)]
        options.append(" ".join([parameter.opts[-1], *words]))
    return options


def as_names(text: str | None, flag: str = "a list") -> tuple[str, ...] | None:
    """The parts of a list with commas, without empty ones; None where the option is left out.

    ConfigError naming the flag where there are none.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    names = tuple(part for part in parts if part)
    if not names:
        raise ConfigError(f"{flag} {text!r} names nothing; give a name, or leave it out")
    return names


def as_numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas; ConfigError naming the flag for anything else."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{flag} {text!r} is not a list of whole numbers; for example {flag} 2,3,4"
        ) from None


def as_widths(text: str | None) -> tuple[int | float, ...] | None:
    """`--bits`: numbers with commas, of which some may be fractions; ConfigError for other text."""
    from qbench.experiment.forms import as_width

    if text is None:
        return None
    try:
        return tuple(as_width(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--bits {text!r} is not a list of numbers; for example --bits 2,3,4 or --bits 2.8"
        ) from None


def as_workers(text: str | None) -> Any:
    """`--workers`: a number, or `auto`. ConfigError for anything else."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--workers {text!r} is neither a positive number nor 'auto'")
    return int(text)


def as_group(text: str | None) -> Any:
    """`--group-size`: a number, or `channel`. ConfigError for anything else."""
    if text is None or text == "channel":
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"--group-size {text!r} is neither a number of inputs nor 'channel'"
        ) from None
