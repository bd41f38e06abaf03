"""One model outside a grid: what `qbench quantize` and `qbench eval` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qbench.calibration.walk import Progress
from qbench.calibration.windows import calibration_windows
from qbench.contracts import Scheme, verb_of
from qbench.environment import pick_device, pick_dtype
from qbench.experiment.grid import Grid
from qbench.experiment.identity import ask
from qbench.experiment.plugins import load_plugins
from qbench.files.shards import require_writable
from qbench.models.source import find_model, torch_dtype
from qbench.models.tokenizers import check_fit
from qbench.quantization import quantize, read_model, refuse_quantized
from qbench.records import Score
from qbench.registry import get_method
from qbench.tasks.contract import Context
from qbench.tasks.data import CALIBRATION, open_source


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
    settings: Mapping[str, Any],
    plugins: Sequence[Path],
    data: str,
    calibration: CalibrationWindows,
    device: str,
    dtype: str,
    progress: Progress,
) -> dict[str, float]:
    """Quantize a model by name, save it to `output`, and return its measured bits per weight.

    settings: values of the method's parameters. dtype: what the model's parameters are rounded to
    beforehand; `auto` leaves them as they are. StoreError before any work where nothing can be
    written at `output`.
    """
    require_writable(output)
    load_plugins(plugins)
    quantizer = get_method(method, **settings)
    machine = pick_device(device)
    source = read_model(find_model(model), "float32")
    refuse_quantized(source, model)
    unquantized, tokenizer = source.model, source.tokenizer
    if dtype != "auto":
        stored = torch_dtype(pick_dtype(dtype, machine))
        for parameter in unquantized.parameters():
            parameter.data = parameter.data.to(stored).float()
    tokens = None
    if verb_of(quantizer) != "quantize_weight":
        texts = open_source(data).text(CALIBRATION)
        check_fit(unquantized, tokenizer, model)
        tokens = calibration_windows(texts, tokenizer, *calibration)
    quantized = quantize(
        unquantized,
        quantizer,
        scheme,
        tokens,
        tokenizer=tokenizer,
        device=machine,
        dtype=pick_dtype("auto", machine),
        progress=progress,
    )
    quantized.save(output)
    return quantized.bits_per_weight


def evaluate_model(folder: Path, grid: Grid, progress: Progress) -> Iterator[Score]:
    """Scores of a saved model, task by task, under the protocol of a grid.

    Raises ConfigError for a task that compares with the unquantized model: here is none.
    """
    device = pick_device(grid.device)
    load_plugins(grid.plugin)
    source = open_source(grid.data)
    grid.check_owners([], calibrates=False)
    asked = ask(grid, source)
    dtype = pick_dtype(grid.dtype, device)
    quantized = read_model(find_model(str(folder)), dtype)
    model, tokenizer = quantized.model, quantized.tokenizer
    check_fit(model, tokenizer, str(folder))
    model.to(device)
    for task, spec in asked:
        batch_size = task.batch_size or grid.defaults["batch_size"]
        context = Context(model, tokenizer, source, batch_size, progress=progress)
        yield from task.evaluate(context, spec).scores
