"""The commands about one model: `qbench quantize`, `export`, `eval`, `inspect`, `verify`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.commands.options import (
    Bos,
    ChatTemplate,
    Data,
    Device,
    HeadBits,
    Layers,
    Memory,
    MethodSets,
    Model,
    Plugins,
    Requantize,
    TaskSets,
    Trust,
    announce,
    as_group,
    as_names,
    err,
    out,
    refuse_unused,
    say,
    typed,
)
from qbench.commands.tables import show_table
from qbench.errors import LARGEST_SEED, LEAST_SEED, ConfigError

if TYPE_CHECKING:
    from qbench.comparison.parity import Parity
    from qbench.inspection.report import Inspection
    from qbench.records import Score

OF_CALIBRATION = ("samples", "length", "seed", "data")  # options

app = typer.Typer()


@app.command(
    epilog="Example: `qbench quantize --method gptq --bits 3 --group-size 64 -o smollm2-gptq-3b`"
)
def quantize(
    context: typer.Context,
    method: Annotated[str, typer.Option(help="`qbench list methods`.")],
    bits: Annotated[
        float, typer.Option(help="Bits per weight code; 2.8 is divided between the layers.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    model: Model = "smollm2-135m",
    group_size: Annotated[str, typer.Option(help="Inputs per group, or 'channel'.")] = "64",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Symmetric grids.")] = False,
    layers: Layers = None,
    head_bits: HeadBits = None,
    sets: MethodSets = None,
    plugin: Plugins = None,
    data: Data = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    seed: Annotated[
        int,
        typer.Option(min=LEAST_SEED, max=LARGEST_SEED, help="Of the calibration sample."),
    ] = 0,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Of what stays unquantized: auto (as it is), float16, bfloat16.")
    ] = "auto",
    memory: Memory = None,
    requantize: Requantize = False,
    trust_remote_code: Trust = False,
) -> None:
    """Quantize one model and save it as a Hugging Face folder."""
    from qbench.contracts import check_scheme
    from qbench.environment import bytes_of
    from qbench.experiment.grid import parse_set, single_settings
    from qbench.registry import declared
    from qbench.scheme import LayerRule, Scheme

    group = as_group(group_size)
    rules = tuple(map(LayerRule.parse, layers or []))
    rest = {"symmetric": symmetric, "rules": rules, "head_bits": head_bits}
    scheme = Scheme.at(bits, None if group == "channel" else group, **rest)
    settings = single_settings(parse_set(sets or []), method)
    if plugin:  # the method may stand in one
        from qbench.experiment.plugins import load_plugins

        load_plugins(plugin)
    check_scheme(declared(method), scheme)
    if not declared(method).calibrates and scheme.budget is None:
        for option in typed(context, OF_CALIBRATION):
            announce(f"warning: {option} does nothing, as {method} does not calibrate")
    from qbench.experiment.single import CalibrationWindows, quantize_model  # imports torch

    with err.status(f"quantizing {model} with {method}") as status:
        bits_per_weight = quantize_model(
            model,
            method,
            scheme,
            output,
            settings=settings,
            data=data or "auto",
            calibration=CalibrationWindows(samples, length, seed),
            device=device or "auto",
            dtype=dtype,
            progress=lambda fraction, text: status.update(text),
            requantize=requantize,
            trust_remote_code=trust_remote_code,
            memory=None if memory is None else bytes_of(memory),
            announce=announce,
        )
    total = bits_per_weight.pop("total")
    parts = ", ".join(f"{part} {value:.3f}" for part, value in bits_per_weight.items())
    out.print(
        f"{output}  {total:.3f} bits/weight ({parts})",
        markup=False,
        soft_wrap=True,
    )


@app.command(
    epilog="Examples: `qbench export smollm2-3b --to gptq -o gptq-3b`   "
    "`qbench export DIR --to gguf -o model.gguf`"
)
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder that `qbench quantize` wrote, or one of GPTQ, AWQ or compressed-tensors."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="gptq, dense, gguf (of Llama and Mistral, without biases) or qbench."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; for gguf a file.")
    ],
    dtype: Annotated[
        str, typer.Option(help="Of what is dense: auto, float32, bfloat16, float16.")
    ] = "auto",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Read it back and compare logits; by default up to 2 GB.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a quantized model for other programs: the same numbers, or the reason why not.
    Prints the bits of what it wrote, and of the source.
    """
    from qbench.export import export as export_folder

    with err.status(f"writing {to}"):
        path = export_folder(folder, to, output, dtype, verify)
    say(f"{path}  {_bits(path)} ({folder}: {_bits(folder)})")


@app.command(
    name="eval",
    epilog="Examples: `qbench eval smollm2-gptq-3b --tasks wikitext,arc_easy --data mini`   "
    "`qbench eval DIR --through http://127.0.0.1:8000 --parity`",
)
def evaluate(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(help="A folder that `qbench quantize` wrote, a GGUF file, or any model."),
    ],
    tasks: Annotated[
        str, typer.Option(help="With commas; `qbench list tasks`.")
    ] = "wikitext,arc_easy",
    preset: Annotated[
        str, typer.Option(help="Limits and shots: a name of `qbench list presets`.")
    ] = "quick",
    sets: TaskSets = None,
    unquantized: Annotated[
        str | None,
        typer.Option(
            help="The model that divergence compares with; default what FOLDER names, if no folder."
        ),
    ] = None,
    data: Data = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    chat_template: ChatTemplate = None,
    bos: Bos = None,
    memory: Memory = None,
    trust_remote_code: Trust = False,
    through: Annotated[
        str | None,
        typer.Option(help="What serves it: vllm, or the address of an OpenAI-compatible server."),
    ] = None,
    parity: Annotated[
        bool,
        typer.Option("--parity", help="Ask transformers too, and say how far the two are apart."),
    ] = False,
) -> None:
    """Evaluate a saved model; prints one line per score."""
    from qbench.experiment.grid import parse_set, read_grid
    from qbench.experiment.single import evaluate_model

    if parity and through is None:
        raise ConfigError("--parity compares with an engine; give --through vllm or an address")
    if unquantized is not None and through is not None:
        raise ConfigError(
            "--unquantized is for divergence, which --through does not give; leave it out"
        )
    if through is not None and not parity:
        refuse_unused(context, ("memory",), "with --through, where the engine holds the model")

    grid = read_grid(
        None,
        {
            "tasks": as_names(tasks, "--tasks"),
            "preset": preset,
            "set": parse_set(sets or []),
            "data": data,
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "bos": bos,
            "memory": memory,
            "trust_remote_code": trust_remote_code,
        },
    )
    with err.status("loading") as status:

        def progress(fraction: float, text: str) -> None:
            status.update(text)

        if through is None:
            for score in evaluate_model(folder, grid, progress, unquantized, announce):
                say(_score_line(score))
            return
        from qbench.experiment.through import evaluate_through

        for said in evaluate_through(folder, grid, through, parity, progress, announce):
            if said.score is not None:
                say(_score_line(said.score))
            if said.parity is not None:
                say(_parity_line(said.task, said.parity))


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
    from qbench.files.shards import verify as verify_files

    problems = verify_files(folder)
    for name, problem in sorted(problems.items()):
        say(f"FAIL  {name}  {problem}" if problem else f"ok    {name}")
    raise typer.Exit(1 if any(problems.values()) else 0)


def _score_line(score: Score) -> str:
    from qbench.reports.headline import score_text

    return f"{score.task}  {score.metric}  {score.filter}  {score_text(score)}  n={score.n}"


def _parity_line(task: str, parity: Parity) -> str:
    """Such as `parity  arc_easy  items=64  flips=0/64  log-probabilities=256  largest=0.0003`."""
    line = f"parity  {task}  items={parity.items}"
    if parity.answered:
        line += f"  flips={parity.flips}/{parity.answered}"
    if parity.largest is not None:
        line += f"  log-probabilities={parity.numbers}"
        line += f"  largest={parity.largest:.2g}  mean={parity.mean:.2g}"
    return line


def _bits(path: Path) -> str:
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
