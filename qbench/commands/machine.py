"""The commands about this machine: `qbench doctor` and `qbench latency`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qbench.commands.options import as_names, as_numbers, err, out
from qbench.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbench.latency.request import Request
    from qbench.latency.timing import Row

app = typer.Typer()


@app.command()
def doctor() -> None:
    """What this machine can do, and why not: hardware, packages, kernels."""
    from qbench.commands.listing import listing
    from qbench.environment import environment

    facts = environment()
    for title in ("hardware", "packages"):
        stated = "  ".join(f"{key}={value}" for key, value in facts[title].items())
        out.print(f"{title}  {stated}", markup=False, highlight=False, soft_wrap=True)
    columns, rows = listing("kernels")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


@app.command(
    epilog="Examples: `qbench latency --shapes llama3-8b --bits 3 --batch 1,8`   `qbench latency --shapes 4096x14336`"
    "   `qbench latency --end-to-end smollm2-bcq-3b`"
)
def latency(
    shapes: Annotated[
        str | None, typer.Option(help="llama3-8b, llama3-70b, qwen3-8b or OUTxIN; with commas.")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits per weight code, with commas.")] = "2,3,4",
    batch: Annotated[str, typer.Option(help="Rows of x, with commas.")] = "1",
    formats: Annotated[
        str, typer.Option("--format", help="binary, uniform; with commas.")
    ] = "binary",
    group_size: Annotated[int, typer.Option(help="Inputs per group.")] = 128,
    rounds: Annotated[int, typer.Option(help="Timed rounds of all candidates.")] = 30,
    end_to_end: Annotated[
        Path | None, typer.Option("--end-to-end", help="A saved model, packed against dense.")
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens to read, end to end.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens to write, end to end.")] = 32,
    repeats: Annotated[int, typer.Option(help="Of each model, in turns, end to end.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 1,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="File to write; of products, in pytest-benchmark's layout."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to write: a roofline of the products.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the GPU kernels' launches for these shapes first.")
    ] = False,
) -> None:
    """Time products with packed weights against dense ones, cold and in turns; or a whole model, on the CPU."""
    least = {
        "--rounds": (rounds, 2),
        "--prompt": (prompt, 1),
        "--tokens": (tokens, 2),
        "--repeats": (repeats, 1),
    }
    for flag, (value, low) in (least | {"--threads": (threads, 1)}).items():
        if value < low:
            raise ConfigError(f"{flag} {value} is too small; give {low} or more")
    if (shapes is None) == (end_to_end is None):
        raise ConfigError(
            "give either --shapes, such as llama3-8b or 4096x4096, or --end-to-end with a saved model"
        )
    if end_to_end is not None:
        if plot is not None or tune or device not in ("auto", "cpu"):
            raise ConfigError(
                f"--plot, --tune and --device are about products; give them with --shapes (--device is {device!r})"
            )
        stored = _end_to_end(end_to_end, prompt, tokens, repeats, threads)
    else:
        numbers = as_numbers("--bits", bits) or (), as_numbers("--batch", batch) or ()
        request = _requested(as_names(shapes) or (), *numbers, as_names(formats) or (), group_size)
        if tune:
            _tune(request)
        stored = _products(request, rounds, device, threads, plot)
    if json_file is not None:
        from qbench.files.atomic import write_text

        write_text(json_file, json.dumps(stored, indent=2) + "\n")


def _requested(
    names: Sequence[str],
    bits: Sequence[int],
    batch: Sequence[int],
    formats: Sequence[str],
    group_size: int,
) -> Request:
    from qbench.latency.request import Request, check_request, shapes_of

    request = Request(shapes_of(names, batch), bits, formats, group_size)
    check_request(request)
    return request


def _products(
    request: Request, rounds: int, device: str, threads: int, plot: Path | None
) -> dict[str, Any]:
    from qbench.latency.pytest_benchmark import as_benchmarks
    from qbench.latency.request import time_shape
    from qbench.reports.roofline import write_roofline

    found: list[Row] = []
    missing: dict[str, str] = {}
    for shape in request.shapes:
        with err.status(f"timing {shape}"):
            rows, missing = time_shape(shape, request, rounds, device, threads)
        Console(width=max(out.width, 110)).print(_product_table(rows))
        found += rows
    for name, reason in missing.items():
        out.print(f"not here  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    stored = as_benchmarks(found)
    if plot is not None:
        out.print(
            f"plot  {write_roofline(stored, plot)}", markup=False, highlight=False, soft_wrap=True
        )
    return stored


def _tune(request: Request) -> None:
    from qbench.kernels.gpu import products as gpu
    from qbench.kernels.gpu import triton_tune
    from qbench.kernels.gpu.triton_layout import Planes, derive
    from qbench.latency.timing import MAKERS

    triton_tune.require_gpu()
    for dtype in gpu.DTYPES[:2]:
        for shape in request.shapes:
            for kind, bits in product(request.formats, request.bits):
                weight = derive(MAKERS[kind](shape, bits, request.group_size))
                assert isinstance(weight, Planes)
                path = triton_tune.tune([weight.to("cuda")], [shape.rows], dtype)
    out.print(f"tuned  {path}", markup=False, highlight=False, soft_wrap=True)


def _product_table(rows: list[Row]) -> Table:
    """Median with tenth and ninetieth percentile, and what it is of the memory's rate and of the dense products."""
    rate, seconds = rows[0].rate, {row.name: row.seconds for row in rows}
    speeds = {
        row.name.removeprefix("multiply "): f"{row.operations / row.seconds / 1e9:.0f}"
        for row in rows[1:3]
    }
    title = f"{rows[0].shape}, {rows[0].device}, {len(rows[0].times)} times each; memory reads {rate / 1e9:.1f}"
    title += f" GB/s, matrices multiply {speeds['bf16']} (bf16) and {speeds['fp32']} (fp32) GFLOP/s"
    columns = ("kernel", "bits", "us", "10-90 %", "GB/s", "of memory", "x fp32", "x bf16", "error")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows[3:]:
        spread = "-".join(f"{second * 1e6:.0f}" for second in row.spread)
        ratios = [f"{seconds[dense] / row.seconds:.2f}" for dense in ("dense fp32", "dense bf16")]
        facts = (
            f"{row.rate / 1e9:.1f}",
            f"{100 * row.rate / rate:.0f} %",
            *ratios,
            f"{row.error:.1g}",
        )
        table.add_row(row.name, f"{row.bits:.2f}", f"{row.seconds * 1e6:.0f}", spread, *facts)
    return table


def _end_to_end(
    folder: Path, prompt: int, tokens: int, repeats: int, threads: int
) -> dict[str, Any]:
    from qbench.environment import environment
    from qbench.latency.end_to_end import compare

    with err.status("loading") as status:
        rows = compare(folder, prompt, tokens, repeats, threads, lambda text: status.update(text))
    columns = ("model", "prefill tok/s", "decode tok/s", "first token ms", "peak MB", "kernels")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        spreads = [
            f"{middle:.1f} ({low:.1f}-{high:.1f})"
            for middle, low, high in (row.prefill, row.decode)
        ]
        served = ", ".join(f"{name} {count}" for name, count in row.kernels.items()) or "torch"
        table.add_row(
            row.name,
            *spreads,
            f"{1000 * row.first_token:.0f}",
            f"{row.peak_bytes / 1e6:.0f}",
            Text(served),
        )
    Console(width=max(out.width, 110)).print(table)
    found = {row.name: row.decode[0] for row in rows}
    ratio = found["packed bfloat16"] / found["dense bfloat16"]
    out.print(
        f"decode  packed is {ratio:.2f} x dense in bfloat16, {threads} threads", highlight=False
    )
    return {"rows": [asdict(row) for row in rows]} | environment()
