"""One model outside a grid: what `qbench quantize` and `qbench eval` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qbench.calibration.walk import Progress
from qbench.calibration.windows import calibration_windows
from qbench.checkpoint.folder import is_loadable
from qbench.contracts import Scheme, verb_of
from qbench.environment import pick_device, pick_dtype
from qbench.experiment.grid import Grid
from qbench.models.source import find_model, load_model, torch_dtype
from qbench.quantization import load, quantize
from qbench.records import Score
from qbench.registry import get_method, load_plugin
from qbench.tasks.contract import Context
from qbench.tasks.data import open_source
from qbench.tasks.registry import get_task


class CalibrationWindows(NamedTuple):
    """How many windows of how many tokens, drawn under which seed."""

    samples: int
    length: int
    seed: int


def quantize_model(
    model: str,
    method: str,
    scheme: Scheme,
    output: Path,
    *,
    settings: Mapping[str, Sequence[Any]],
    plugins: Sequence[Path],
    data: str,
    calibration: CalibrationWindows,
    device: str,
    dtype: str,
    progress: Progress,
) -> dict[str, float]:
    """Quantize a model by name, save it to `output`, and return its measured bits per weight.

    dtype: what its parameters are rounded to beforehand; `auto` leaves them as they are.
    """
    for path in plugins:
        load_plugin(path)
    made = get_method(method, **{key: values[0] for key, values in settings.items()})
    chosen = pick_device(device)
    loaded, tokenizer = load_model(find_model(model), "float32")
    if dtype != "auto":
        for parameter in loaded.parameters():
            parameter.data = parameter.data.to(torch_dtype(pick_dtype(dtype, chosen))).float()
    tokens = None
    if verb_of(made) != "quantize_weight":
        tokens = calibration_windows(open_source(data).text("calibration"), tokenizer, *calibration)
    walk = pick_dtype("auto", chosen)
    result = quantize(
        loaded,
        made,
        scheme,
        tokens,
        tokenizer=tokenizer,
        device=chosen,
        dtype=walk,
        progress=progress,
    )
    result.save(output)
    return result.bits_per_weight


def evaluate_model(folder: Path, grid: Grid, progress: Progress) -> Iterator[Score]:
    """Scores of a saved model, task by task, under the protocol of a grid."""
    source, device = open_source(grid.data), pick_device(grid.device)
    wanted = [
        (get_task(name), get_task(name).spec(source, **grid.task_options(name)))
        for name in grid.task_names
    ]
    dtype = pick_dtype(grid.dtype, device)
    if is_loadable(folder):
        quantized = load(folder, dtype, packed=False)
        model, tokenizer = quantized.model, quantized.tokenizer
    else:
        model, tokenizer = load_model(find_model(str(folder)), dtype)
    model.to(device)
    for task, spec in wanted:
        size = 1 if task.kind == "text" else grid.defaults["batch_size"]
        yield from task.evaluate(
            Context(model, tokenizer, source, size, progress=progress), spec
        ).scores
