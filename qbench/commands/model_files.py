"""The commands about the files of one model: `qbench inspect`, `verify`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.options import say
from qbench.commands.tables import show_table

if TYPE_CHECKING:
    from qbench.inspection.report import Inspection

app = typer.Typer()


@app.command(
    epilog="Examples: `qbench inspect smollm2-gptq-3b`   `qbench inspect model-Q4_K_M.gguf --json`"
)
def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A folder of qbench, GPTQ, AWQ or compressed-tensors; or a GGUF file."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show where the bits of a model are, measured from the headers of its files."""
    from qbench.inspection.report import inspect as inspect_model

    inspection = inspect_model(path)
    if as_json:
        print(json.dumps(asdict(inspection), indent=2))
        return
    say(_headline(inspection))
    _show_items(inspection)
    # `model.layers.0.mlp` and `model.layers.1.mlp` are one line, `model.layers.*.mlp`.
    patterns = [re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in inspection.unquantized_layers]
    for pattern, count in Counter(patterns).items():
        layers = f"  ({count} layers)" if count > 1 else ""
        say(f"not quantized  {pattern}{layers}")
    for note in inspection.notes:
        say(f"note  {note}")
    if inspection.parameters:
        say(f"stated  {_flat(inspection.parameters)}")


@app.command(epilog="Example: `qbench verify smollm2-gptq-3b`")
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `qbench quantize` wrote.")],
) -> None:
    """Hold every file of a saved model against the hash in its index; exit code 1 where one
    differs.
    """
    from qbench.files.written_folder import verify as verify_files

    problems = verify_files(folder)
    for name, problem in sorted(problems.items()):
        say(f"FAIL  {name}  {problem}" if problem else f"ok    {name}")
    raise typer.Exit(1 if any(problems.values()) else 0)


def bits_in_words(path: Path) -> str:
    """What the files of a model take, measured from their headers."""
    from qbench.inspection.report import inspect as inspect_model

    inspection = inspect_model(path)
    total = inspection.bits_per_weight.get("total")
    if total is None:
        return f"{inspection.bits_per_parameter:.3f} bits/parameter, unquantized"
    return f"{total:.3f} bits/weight"


def _flat(parameters: Mapping[str, Any]) -> str:
    """`bits=3 group_size=64`, nested ones after them.

    The paper is left out; it has a line of its own in the model's card.
    """
    own = []
    nested = []
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            nested.append(_flat(value))
        elif key != "paper":
            own.append(f"{key}={value}")
    return " ".join(own + nested)


def _headline(inspection: Inspection) -> str:
    """What it is, the bits of its quantized weights, in its config and measured, and of all."""
    subject = f"{inspection.path}  {_origin(inspection)}"
    whole = (
        f"{inspection.bits_per_parameter:.3f} bits per parameter of the whole, "
        f"{inspection.nbytes / 1e6:.1f} MB"
    )
    if not inspection.quantized_weights:
        return f"{subject}: nothing is quantized; {whole}"
    config = ""
    if inspection.stated_bits is not None:
        config = f" (stated: {inspection.stated_bits:g}-bit codes)"
    return (
        f"{subject}: {inspection.bits_per_weight['total']:.3f} bits per weight{config} over "
        f"{inspection.quantized_weights:,} weights of {inspection.quantized_layers} layers; {whole}"
    )


def _origin(inspection: Inspection) -> str:
    """The program, the version of its format, and the method where that is another word."""
    origin: str = inspection.source
    if inspection.format_version:
        origin += f" ({inspection.format_version})"
    if inspection.method in (None, inspection.source):
        return origin
    return f"{origin}, {inspection.method}"


def _show_items(inspection: Inspection) -> None:
    columns = ("item", "tensors", "bytes", "share", "bits per weight")
    rows = []
    for item in inspection.items:
        bits = inspection.bits_per_weight.get(item.name)
        rows.append(
            [
                item.name.replace("_", " "),
                str(item.tensors),
                f"{item.nbytes:,}",
                f"{item.share:.1%}",
                "" if bits is None else f"{bits:.4f}",
            ]
        )
    show_table(columns, rows, right=columns[1:])
