"""One model outside a grid: what `qbench quantize` and `qbench eval` do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from qbench.calibration.walk import Progress
from qbench.calibration.windows import calibration_windows
from qbench.checkpoint.block_files import BlockFiles
from qbench.contracts import Scheme, calibrates
from qbench.environment import pick_device, pick_dtype
from qbench.errors import ConfigError, ModelError
from qbench.experiment.data_choice import ChosenData, announced_data, tables_of
from qbench.experiment.grid import Grid
from qbench.experiment.grid_checks import check_owners
from qbench.experiment.identity import ask
from qbench.experiment.memory import Memory, quantized_into
from qbench.experiment.plugins import load_plugins
from qbench.files.atomic import require_apart
from qbench.files.written_folder import require_writable
from qbench.models.identity import Announce, resolved_revision
from qbench.models.paging import on_device, round_parameters
from qbench.models.provenance import provenance
from qbench.models.source import ModelSource, find_model, local_folder, torch_dtype
from qbench.models.tokenizers import check_fit, require_template
from qbench.quantization import QuantizedModel, made_of, quantize, refuse_quantized
from qbench.records import Score, TaskSpec
from qbench.registry import get_method
from qbench.tasks.contract import Context, Outcome, Task, Unquantized
from qbench.tasks.data import CALIBRATION
from qbench.tasks.outcome import checked
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
    settings: Mapping[str, Any],
    data: str,
    calibration: CalibrationWindows,
    device: str,
    dtype: str,
    progress: Progress,
    requantize: bool = False,
    trust_remote_code: bool = False,
    memory: int | None = None,
    announce: Announce = lambda text: None,
) -> dict[str, float]:
    """Quantize a model by name, save it to `output`, and return its measured bits per weight.

    settings: values of the method's parameters. dtype: to which the model's parameters are rounded
    beforehand; `auto` leaves them as they are. requantize: whether a model that is quantized
    already is accepted. trust_remote_code: whether code from the model's folder may run. memory:
    bytes that may be taken, None for what there is. announce: is called with a sentence about the
    data. StoreError, before any work, where `output` cannot be written, or is the model itself.
    """
    require_writable(output)
    quantizer = get_method(method, **settings)
    machine = pick_device(device)
    place = find_model(model, trust_remote_code)
    read = place.path if place.local else local_folder(place)
    if read is not None:  # else it is not here yet
        require_apart(output, read)
    calibrating = None
    if calibrates(quantizer) or scheme.budget is not None:
        calibrating = announced_data(data, (model,), (CALIBRATION,), announce).source
    allowed = Memory(memory, output.absolute().parent)
    original = allowed.read(place, "float32")
    if not requantize:
        refuse_quantized(original, model)
    if dtype != "auto":
        round_parameters(original.model, torch_dtype(pick_dtype(dtype, machine)))
    tokens = None
    if calibrating is not None:
        check_fit(original.model, original.tokenizer, model)
        texts = calibrating.text(CALIBRATION)
        tokens = calibration_windows(texts, original.tokenizer, *calibration)

    def work(files: BlockFiles | None) -> QuantizedModel:
        quantized = quantize(
            original.model,
            quantizer,
            scheme,
            tokens,
            tokenizer=original.tokenizer,
            device=machine,
            dtype=pick_dtype("auto", machine),
            progress=progress,
            files=files,
        )
        quantized.manifest |= _origin(model, place)
        return quantized

    with allowed.at_work():
        return quantized_into(output, original.model, work).bits_per_weight


def _origin(name: str, source: ModelSource) -> dict[str, Any]:
    """What the manifest of a quantized model says of the model of that name, which it is made of.

    The path of a folder would tell nothing on another machine.
    """
    named = {}
    if not Path(name).is_dir():
        named = {"model": name, "model_revision": resolved_revision(source)}
    return named | provenance(source)


def evaluate_model(
    folder: Path,
    grid: Grid,
    progress: Progress,
    unquantized: str | None,
    announce: Announce,
) -> Iterator[Score]:
    """Scores of a saved model, task by task, under the protocol of a grid.

    unquantized: the model that tasks compare with, None for the one from which the folder says that
    it was made. announce: is called with a sentence about the data. ConfigError where a task
    compares with the unquantized model, and that is not known.
    """
    for _spec, outcome in judge_model(folder, grid, progress, unquantized, announce):
        yield from outcome.scores


def judge_model(
    folder: Path,
    grid: Grid,
    progress: Progress,
    unquantized: str | None = None,
    announce: Announce = lambda text: None,
) -> Iterator[tuple[TaskSpec, Outcome]]:
    """The outcome of every task, with its items. Arguments and errors as in `evaluate_model`."""
    device = pick_device(grid.device)
    load_plugins(grid.plugin)
    _check_tasks(grid, unquantized)
    place = find_model(str(folder), grid.trust_remote_code)
    if grid.prompts["chat_template"]:
        require_template(place)
    source = data_for(grid, unquantized or made_of(place) or str(folder), announce).source
    asked = ask(grid, source, announce)
    dtype = pick_dtype(grid.dtype, device)
    allowed = Memory(grid.memory, Path(tempfile.gettempdir()))
    quantized = allowed.read(place, dtype, device)
    model, tokenizer = quantized.model, quantized.tokenizer
    check_fit(model, tokenizer, str(folder))
    name = unquantized or quantized.manifest.get("model")
    if name is None:
        _refuse_comparisons(asked, folder)
    on_device(model, device)

    def load() -> tuple[Any, Any]:
        origin = find_model(str(name), grid.trust_remote_code)
        if unquantized is None:
            require_origin(origin, quantized.manifest.get("model_revision"), folder)
        original = allowed.read(origin, dtype, device)
        return on_device(original.model, device), original.tokenizer

    with tempfile.TemporaryDirectory(prefix="qbench-reference-") as scratch, allowed.at_work():
        context = Context(model, tokenizer, source, progress=progress)
        context.unquantized = Unquantized(load, lambda spec: Path(scratch) / f"{spec.name}.npy")
        contexts = []
        for task, spec in asked:
            batch_size = task.batch_size or grid.defaults["batch_size"]
            contexts.append(replace(context, batch_size=batch_size))
            if task.needs_unquantized:  # first, as tasks may share a pass over the windows
                task.prepare(contexts[-1], spec)
        for mine, (task, spec) in zip(contexts, asked, strict=True):
            yield spec, checked(task, spec, task.evaluate(mine, spec))


def _check_tasks(grid: Grid, unquantized: str | None) -> None:
    """ConfigError for a wrong setting of a task, or where none compares with `unquantized`.

    A model is looked for only afterwards, as that may take long.
    """
    check_owners(grid, [], calibrates=False)
    for name in grid.task_names:
        grid.task_options(name)
    if unquantized is None or any(get_task(name).needs_unquantized for name in grid.task_names):
        return
    raise ConfigError(
        f"--unquantized {unquantized} does nothing, as none of {', '.join(grid.task_names)} "
        "compares with it; leave it out, or add divergence to --tasks"
    )


def _refuse_comparisons(asked: Iterable[tuple[Task, TaskSpec]], folder: Path) -> None:
    """ConfigError for a task that compares with the unquantized model, which is not known."""
    for task, spec in asked:
        if task.needs_unquantized:
            raise ConfigError(
                f"{spec.name} compares with the unquantized model, and {folder} does not say which "
                "that is; give --unquantized MODEL, or leave the task out"
            )


def require_origin(origin: ModelSource, revision: str | None, folder: Path) -> None:
    """ModelError where the model of that name has changed since the folder was made from it."""
    present = resolved_revision(origin)
    if revision is not None and present != revision:
        raise ModelError(
            f"{folder} was made from revision {revision} of {origin.name}, which is at {present} "
            "now; give the model that it was made from by --unquantized MODEL"
        )


def data_for(grid: Grid, name: str, announce: Announce) -> ChosenData:
    """The data of the grid's tasks. name: of the model that they judge."""
    tables = tables_of([get_task(task) for task in grid.task_names])
    return announced_data(grid.data, (name,), tables, announce)
