"""The commands that make or judge one model: `qbench quantize`, `export`, `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench.commands.model_files import bits_in_words
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
from qbench.errors import LARGEST_SEED, LEAST_SEED, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qbench.comparison.parity import Parity
    from qbench.experiment.grid import Grid
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
            "--to", help="gptq, dense, gguf (of Llama, Mistral, Qwen2 and Qwen3) or qbench."
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
    say(f"{path}  {bits_in_words(path)} ({folder}: {bits_in_words(folder)})")


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
    from qbench.experiment.grid import parse_set
    from qbench.experiment.grid_file import read_grid
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
            scores = evaluate_model(folder, grid, progress, unquantized, announce)
            lines: Iterator[str] = map(_score_line, scores)
        else:
            lines = _lines_through(folder, grid, through, parity, progress)
        for line in lines:
            say(line)


def _lines_through(
    folder: Path, grid: Grid, through: str, parity: bool, progress: Callable[[float, str], None]
) -> Iterator[str]:
    """The scores through an engine, and with `parity` how far transformers is from each.

    progress: is called with the part that is done, 0 to 1, and a text.
    """
    from qbench.experiment.through import evaluate_through

    for said in evaluate_through(folder, grid, through, parity, progress, announce):
        if said.score is not None:
            yield _score_line(said.score)
        if said.parity is not None:
            yield _parity_line(said.task, said.parity)


def _score_line(score: Score) -> str:
    from qbench.reports.numbers import score_text

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
