"""The commands about one model: `qbench quantize`, `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli_options import Data, Device, Model, Plugins, Sets, as_group, as_names, err, out

app = typer.Typer()


@app.command(epilog="Example: `qbench quantize --method gptq --bits 3 --group-size 64 -o smollm2-gptq-3b`")
def quantize(
    method: Annotated[str, typer.Option(help="`qbench list methods`.")],
    bits: Annotated[int, typer.Option(help="Bits per weight code.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    model: Model = "smollm2-135m",
    group_size: Annotated[str, typer.Option(help="Inputs per group, or 'channel'.")] = "64",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Symmetric grids.")] = False,
    sets: Sets = None,
    plugin: Plugins = None,
    data: Data = None,
    samples: Annotated[int, typer.Option(help="Calibration windows.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the calibration sample.")] = 0,
    device: Device = None,
) -> None:
    """Quantize one model and save it as a Hugging Face folder."""
    from qbench.contracts import Scheme
    from qbench.grid import parse_set
    from qbench.single import CalibrationWindows, quantize_model

    group = as_group(group_size)
    with err.status(f"quantizing {model} with {method}") as status:
        bits_per_weight = quantize_model(
            model,
            method,
            Scheme(bits, None if group == "channel" else group, symmetric),
            output,
            settings=parse_set(sets or []).get(method, {}),
            plugins=plugin or [],
            data=data or "auto",
            calibration=CalibrationWindows(samples, length, seed),
            device=device or "auto",
            progress=lambda fraction, text: status.update(text),
        )
    parts = ", ".join(f"{part} {value:.3f}" for part, value in bits_per_weight.items() if part != "total")
    out.print(f"{output}  {bits_per_weight['total']:.3f} bits/weight ({parts})", markup=False, soft_wrap=True)


@app.command(name="eval", epilog="Example: `qbench eval smollm2-gptq-3b --tasks wikitext,arc_easy --data mini`")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder that `qbench quantize` wrote, or any model.")],
    tasks: Annotated[str, typer.Option(help="With commas; `qbench list tasks`.")] = "wikitext,arc_easy",
    preset: Annotated[str, typer.Option(help="quick or paper: limits and shots.")] = "quick",
    sets: Sets = None,
    data: Data = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Evaluate a saved model; prints one line per score."""
    from qbench.grid import parse_set, read_grid
    from qbench.reports.headline import number
    from qbench.single import evaluate_model

    grid = read_grid(
        None,
        {
            "tasks": as_names(tasks),
            "preset": preset,
            "set": parse_set(sets or []),
            "data": data,
            "device": device,
            "dtype": dtype,
        },
    )
    with err.status("loading") as status:
        for score in evaluate_model(folder, grid, lambda fraction, text: status.update(text)):
            value = number(score.value, score.stderr, score.metric)
            out.print(
                f"{score.task}  {score.metric}  {score.filter}  {value}  n={score.n}", markup=False, highlight=False
            )
