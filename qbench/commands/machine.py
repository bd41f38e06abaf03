"""The command `qbench latency`: how long products and models take on this machine."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.options import as_group, as_names, as_numbers, err, out, refuse_unused, say
from qbench.commands.tables import show_table
from qbench.errors import ConfigError, reason_of
from qbench.files.atomic import require_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qbench.latency.end_to_end import Speed, Variant
    from qbench.latency.request import Request
    from qbench.latency.timing import Row, Shape

PRODUCT_COLUMNS = (
    "kernel", "bits", "us", "10-90 %", "GB/s", "of memory", "x fp32", "x bf16", "error",
)  # fmt: skip
MODEL_COLUMNS = (
    "model", "prefill tok/s", "decode tok/s", "first token ms", "peak MB", "kernels",
)  # fmt: skip

OF_PRODUCTS = (  # options that do nothing for a whole model
    "bits", "batch", "formats", "group_size", "kernels", "rounds", "plot", "tune",
)  # fmt: skip
OF_MODELS = ("prompt", "tokens", "repeats")  # options that do nothing for products
MOST_TURNS = 100_000  # more rounds take days

app = typer.Typer()


@app.command(
    epilog="Examples: `qbench latency --shapes llama3-8b --bits 3 --batch 1,8`   "
    "`qbench latency --shapes 4096x14336`   `qbench latency --end-to-end smollm2-bcq-3b`"
)
def latency(
    context: typer.Context,
    shapes: Annotated[
        str | None, typer.Option(help="llama3-8b, llama3-70b, qwen3-8b or OUTxIN; with commas.")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits per weight code, with commas.")] = "2,3,4",
    batch: Annotated[str, typer.Option(help="Rows of x, with commas.")] = "1",
    formats: Annotated[
        str, typer.Option("--format", help="binary, uniform; with commas.")
    ] = "binary",
    group_size: Annotated[str, typer.Option(help="Inputs per group, or 'channel'.")] = "128",
    kernels: Annotated[
        str | None,
        typer.Option(help="Names, with commas; without, all that serve (`qbench list kernels`)."),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", help="A Python file that defines a kernel. May be repeated."),
    ] = None,
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
    """Time products with packed weights against dense ones, cold and in turns; or a whole model."""
    _check_numbers(rounds, prompt, tokens, repeats, threads)
    _check_choice(context, shapes, end_to_end)
    require_place(json_file, plot)
    _load_plugins(plugin or ())
    if end_to_end is not None:
        with _memory_in_words("fewer tokens or a smaller model"):
            stored = _end_to_end(end_to_end, prompt, tokens, repeats, threads, device)
    else:
        request = _requested(
            as_names(shapes) or (),
            as_numbers("--batch", batch) or (),
            as_numbers("--bits", bits) or (),
            as_names(formats) or (),
            as_group(group_size),
            as_names(kernels) or (),
            device,
        )
        if tune:
            _tune(request)
        with _memory_in_words("fewer rows or a smaller matrix"):
            stored = _products(request, rounds, device, threads, plot)
    if json_file is not None:
        from qbench.files.atomic import write_text

        write_text(json_file, json.dumps(stored, indent=2) + "\n")


def _check_choice(context: typer.Context, shapes: str | None, end_to_end: Path | None) -> None:
    """ConfigError unless products or a model are to be timed, with the options of those."""
    if (shapes is None) == (end_to_end is None):
        raise ConfigError(
            "give either --shapes, such as llama3-8b or 4096x4096, or --end-to-end with a saved "
            "model"
        )
    if end_to_end is not None:
        refuse_unused(context, OF_PRODUCTS, "with --end-to-end")
    else:
        refuse_unused(context, OF_MODELS, "with --shapes")


def _check_numbers(rounds: int, prompt: int, tokens: int, repeats: int, threads: int) -> None:
    """ConfigError for a number of `qbench latency` that is too small or too large."""
    present = os.cpu_count() or 1
    bounds = {
        "--rounds": (rounds, 2, MOST_TURNS, ""),
        "--prompt": (prompt, 1, None, ""),  # a model says how many tokens it takes
        "--tokens": (tokens, 2, None, ""),
        "--repeats": (repeats, 1, MOST_TURNS, ""),
        "--threads": (threads, 1, present, ", the cores of this machine"),
    }
    for flag, (value, low, high, why) in bounds.items():
        if value < low:
            raise ConfigError(f"{flag} {value} is too small; give {low} or more")
        if high is not None and value > high:
            raise ConfigError(f"{flag} {value} is too large; give at most {high}{why}")


@contextmanager
def _memory_in_words(instead: str) -> Iterator[None]:
    """A context in which running out of memory is a ConfigError. instead: what to give."""
    try:
        yield
    except Exception as error:
        from qbench.experiment.back_off import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"memory ran out ({reason_of(error)}); give {instead}, or end other programs"
        ) from error


def _load_plugins(paths: Sequence[Path]) -> None:
    if paths:
        from qbench.kernels.registry import load_plugin

        for path in paths:
            load_plugin(path)


def _requested(
    names: Sequence[str],
    batch: Sequence[int],
    bits: Sequence[int],
    formats: Sequence[str],
    group_size: int | str,
    kernels: Sequence[str],
    device: str,
) -> Request:
    """What the flags ask for, each thing once however often it was typed."""
    from qbench.latency.request import Request, check_request, shapes_of

    group = None if isinstance(group_size, str) else group_size  # `channel`
    request = Request(
        shapes_of(names, batch),
        list(dict.fromkeys(bits)),
        list(dict.fromkeys(formats)),
        group,
        list(dict.fromkeys(kernels)),
    )
    check_request(request, device)
    return request


def _tune(request: Request) -> None:
    from qbench.latency.gpu import tune

    for path in tune(request):
        say(f"tuned  {path}")


def _products(
    request: Request, rounds: int, device: str, threads: int, plot: Path | None
) -> dict[str, Any]:
    """Time and print every shape; returns what `--json` stores."""
    from qbench.latency.pytest_benchmark import as_benchmarks
    from qbench.latency.request import time_shape
    from qbench.reports.roofline import write_roofline

    timed: list[Row] = []
    missing: dict[tuple[str, str], list[Shape]] = {}
    for shape in request.shapes:
        with err.status(f"timing {shape}"):
            rows, absent = time_shape(shape, request, rounds, device, threads)
        _show_products(rows)
        _say_faster_than_memory(rows)
        timed += rows
        for each in absent.items():
            missing.setdefault(each, []).append(shape)
    for (name, reason), shapes in missing.items():
        where = "" if len(shapes) == len(request.shapes) else f" at {'; '.join(map(str, shapes))}"
        say(f"not here  {name}{where}: {reason}")
    stored = as_benchmarks(timed)
    if plot is not None:
        say(f"plot  {write_roofline(stored, plot)}")
    return stored


def _show_products(rows: Sequence[Row]) -> None:
    """Print the rows of one shape: three probes in a line above the table, and the products.

    Columns: us: median of the times, with the tenth and ninetieth percentile. of memory: the rate
    at which weights are read, as a part of the memory's. x fp32, x bf16: how many times as fast as
    the dense product.
    """
    memory, bf16, fp32 = rows[:3]
    products = rows[3:]
    say(
        f"{memory.shape}, {memory.device}, {len(memory.times)} times each; "
        f"memory reads {memory.rate / 1e9:.1f} GB/s, matrices multiply {_gflops(bf16)} (bf16) "
        f"and {_gflops(fp32)} (fp32) GFLOP/s"
    )
    lines = []
    dense = {row.name: row.seconds for row in products}
    for row in products:
        low, high = row.spread
        lines.append(
            [
                row.name,
                f"{row.bits:.2f}",
                f"{row.seconds * 1e6:.0f}",
                f"{low * 1e6:.0f}-{high * 1e6:.0f}",
                f"{row.rate / 1e9:.1f}",
                f"{100 * row.rate / memory.rate:.0f} %",
                f"{dense['dense fp32'] / row.seconds:.2f}",
                f"{dense['dense bf16'] / row.seconds:.2f}",
                f"{row.error:.1g}",
            ]
        )
    show_table(PRODUCT_COLUMNS, lines)


def _say_faster_than_memory(rows: Sequence[Row]) -> None:
    """Name the products of one shape that read their weights faster than the memory was read."""
    memory, _, _, *products = rows
    faster = [row.name for row in products if row.rate > memory.rate]
    if faster:
        say(
            f"caution  {memory.shape}: {', '.join(faster)} stand above 100 % of memory: a cache "
            f"keeps their weights, or other programs slowed the reading of memory down; time a "
            f"larger matrix, or when the machine is idle"
        )


def _gflops(row: Row) -> str:
    return f"{row.operations / row.seconds / 1e9:.0f}"


def _end_to_end(
    folder: Path, prompt: int, tokens: int, repeats: int, threads: int, device: str
) -> dict[str, Any]:
    """Time and print a saved model; returns what `--json` stores."""
    from qbench.environment import environment
    from qbench.latency.request import device_of
    from qbench.models.identity import resolved_revision
    from qbench.models.source import find_model

    place = device_of(device)
    rows, variants = _timed_model(folder, prompt, tokens, repeats, threads, place)
    measured = {
        "model": folder.resolve().name,
        "revision": resolved_revision(find_model(str(folder))),
        "prompt": prompt,
        "tokens": tokens,
        "repeats": repeats,
        "device": place,
        "threads": threads if place == "cpu" else None,
        "dtypes": list(dict.fromkeys(variant.dtype for variant in variants)),
    }
    say(_heading(measured))
    _show_model(rows)
    decode = {row.name: row.decode[0] for row in rows}
    ratio = decode["packed bfloat16"] / decode["dense bfloat16"]
    out.print(f"decode  packed is {ratio:.2f} x dense in bfloat16, {place}", highlight=False)
    return {"measured": measured, "rows": [asdict(row) for row in rows]} | environment()


def _timed_model(
    folder: Path, prompt: int, tokens: int, repeats: int, threads: int, place: str
) -> tuple[Sequence[Speed], Sequence[Variant]]:
    """The speed of each variant of a saved model, and the variants. place: `cpu` or `cuda`."""
    from qbench.latency import end_to_end, gpu_end_to_end

    with err.status("loading") as status:
        if place == "cuda":
            speeds = gpu_end_to_end.compare(folder, prompt, tokens, repeats, status.update)
            return speeds, gpu_end_to_end.VARIANTS
        speeds = end_to_end.compare(folder, prompt, tokens, repeats, threads, status.update)
        return speeds, end_to_end.VARIANTS


def _show_model(rows: Sequence[Speed]) -> None:
    """The table of a whole model: a line for each variant."""
    lines = []
    for row in rows:
        kernels = ", ".join(f"{name} {count}" for name, count in row.kernels.items())
        lines.append(
            [
                row.name,
                _with_range(row.prefill),
                _with_range(row.decode),
                f"{1000 * row.first_token:.0f}",
                f"{row.peak_bytes / 1e6:.0f}",
                kernels or "torch",
            ]
        )
    show_table(MODEL_COLUMNS, lines, sentences=("kernels",))


def _heading(measured: dict[str, Any]) -> str:
    """The line above the table of a whole model."""
    from qbench.records import threads_in_words

    device = measured["device"]
    if measured["threads"] is not None:
        device = f"{device}, {threads_in_words(measured['threads'])}"
    return (
        f"{measured['model']} ({measured['revision']}), {', '.join(measured['dtypes'])} on "
        f"{device}: {measured['prompt']} tokens read and {measured['tokens']} written, "
        f"{measured['repeats']} times each"
    )


def _with_range(spread: tuple[float, float, float]) -> str:
    """(median, least, most) as `median (least-most)`."""
    median, least, most = spread
    return f"{median:.1f} ({least:.1f}-{most:.1f})"
