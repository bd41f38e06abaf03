"""The command `qbench layers`: what quantizing each layer costs, and what keeping it gains."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.bar import QUIET_SECONDS, time_bar
from qbench.commands.options import (
    Data,
    Device,
    MethodSets,
    Plugins,
    Trust,
    announce,
    as_group,
    err,
    out,
    refuse_unused,
    say,
)
from qbench.errors import ConfigError
from qbench.outside_text import printable

if TYPE_CHECKING:
    from qbench.experiment.layers import LayerRequest

OF_QUANTIZING = ("method", "bits", "group_size", "sets", "plugin")  # options for want of a folder

app = typer.Typer()


@app.command(
    epilog="Examples: `qbench layers smollm2-3b --model smollm2-135m`   "
    "`qbench layers --model smollm2-135m --method rtn --bits 3 --group-size 64`"
)
def layers(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(help="A quantized folder; without one, --model is quantized for this."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The unquantized model; default the one that FOLDER names, if it is no folder."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Without FOLDER; `qbench list methods`.")] = "rtn",
    bits: Annotated[int, typer.Option(help="Without FOLDER: bits per weight code.")] = 3,
    group_size: Annotated[
        str, typer.Option(help="Without FOLDER: inputs per group, or 'channel'.")
    ] = "64",
    sets: MethodSets = None,
    plugin: Plugins = None,
    windows: Annotated[int, typer.Option(min=2, help="Of text, for each layer.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 128,
    keep: Annotated[int, typer.Option(min=0, help="Layers that are kept together.")] = 3,
    data: Data = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for layers.json, .svg and .png.")
    ] = Path("layers"),
    trust_remote_code: Trust = False,
) -> None:
    """Measure what each layer costs: quantized alone, and restored in the quantized model.

    Then the layers that gain most are kept as they are together, and judged on other text.
    """
    if folder is None and model is None:
        raise ConfigError("there is nothing to measure; give a quantized folder, or --model MODEL")
    if folder is not None:
        refuse_unused(context, OF_QUANTIZING, f"for {folder}, which is quantized already")
    from qbench.experiment.layers import LayerRequest, layers_of, scratch
    from qbench.files.atomic import require_place, write_bytes, write_text
    from qbench.reports.layer_map import heat_map
    from qbench.reports.plots import png, svg

    require_place(output / "layers.json")
    request = LayerRequest(
        unquantized=model,
        windows=windows,
        length=length,
        keep=keep,
        data=data or "auto",
        device=device or "auto",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    with ExitStack() as stack:
        title = str(folder)
        if folder is None:
            folder = Path(stack.enter_context(scratch()), "model")
            title = f"{model} {method} {bits}b g{group_size}"
            scheme = (method, bits, as_group(group_size))
            _quantize(request, folder, scheme, sets or [], plugin or [])
        with _Timed() as progress:
            measured = layers_of(folder, request, progress, announce)
    report = {"model": title, "windows": windows, "length": length} | measured
    paths = [write_text(output / "layers.json", json.dumps(report, indent=1) + "\n")]
    figure = heat_map(report, title)
    paths.append(write_text(output / "layers.svg", svg(figure)))
    paths.append(write_bytes(output / "layers.png", png(figure)))
    _show(report, title)
    say(f"written  {'  '.join(map(str, paths))}")


def _quantize(
    request: LayerRequest,
    folder: Path,
    scheme: tuple[str, int, Any],
    sets: list[str],
    plugins: list[Path],
) -> None:
    """Quantize and save the model to be measured. scheme: method, bits and group size."""
    from qbench.contracts import Scheme
    from qbench.experiment.grid import parse_set, single_settings
    from qbench.experiment.plugins import load_plugins
    from qbench.experiment.single import CalibrationWindows, quantize_model

    load_plugins(plugins)
    method, bits, group = scheme
    with err.status(f"quantizing {request.unquantized} with {method}") as status:
        quantize_model(
            str(request.unquantized),
            method,
            Scheme(bits, None if group == "channel" else group),
            folder,
            settings=single_settings(parse_set(sets), method),
            data=request.data,
            calibration=CalibrationWindows(64, 512, 0),
            device=request.device,
            dtype="auto",
            progress=lambda fraction, text: status.update(text),
            trust_remote_code=request.trust_remote_code,
            announce=announce,
        )


class _Timed:
    """A bar with the time left on a terminal, and in a log a line now and then."""

    def __init__(self) -> None:
        self._bar = time_bar(err)
        self._task = self._bar.add_task("loading", total=1.0)
        self._last = self._started = self._bar.get_time()

    def __enter__(self) -> _Timed:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def __call__(self, fraction: float, text: str) -> None:
        """fraction: of the work, 0..1."""
        self._bar.update(self._task, completed=fraction, description=printable(text))
        now = self._bar.get_time()
        if not err.is_terminal and now - self._last >= QUIET_SECONDS and fraction:
            self._last = now
            left = (now - self._started) * (1 - fraction) / fraction
            err.print(f"{fraction:4.0%}  {text}  {left / 60:.1f} min left", markup=False)


def _show(report: dict[str, Any], title: str) -> None:
    """The layers that gain most, and what keeping them buys."""
    from qbench.reports.layer_map import COLUMNS, advice, interval, rows

    lines = [COLUMNS, *rows(report)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out.print(
        f"{title}: KL {interval(report['total'])} nats, "
        f"{len(report['effects'])} parts; those that gain most when restored:",
        markup=False,
        soft_wrap=True,
    )
    for line in lines:
        fields = [field.ljust(width) for field, width in zip(line, widths, strict=True)]
        say("  ".join(fields).rstrip())
    sentence = advice(report)
    if sentence:
        say(sentence)
        flags = f"in a run: {shlex.join(report['flags'])}"
        if report["budget"] is not None:
            flags += f"; --bits {report['budget']} is then divided anew between all other layers"
        say(flags)
