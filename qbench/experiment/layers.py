"""From names to what each layer of a quantized model costs: what `qbench layers` does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.calibration.walk import Progress
from qbench.environment import pick_device, pick_dtype
from qbench.errors import ConfigError, DataError
from qbench.experiment.data_choice import announced_data
from qbench.layers.effects import Windows, facts, measure
from qbench.models.identity import Announce
from qbench.models.source import find_model
from qbench.models.tokenizers import check_fit
from qbench.quantization import load, read_model, refuse_quantized
from qbench.tasks.article_windows import article_windows
from qbench.tasks.data import Source
from qbench.tasks.registry import get_task

TEXT = "wikitext"  # the task whose text and windows are taken
SPREAD = 2  # windows of one article, at most


@dataclass(frozen=True)
class LayerRequest:
    """How layers are measured.

    unquantized: the model that was quantized, None for the one that the folder names. windows,
    length: of text, for the parts; as many others judge what is kept. keep: parts that are restored
    together.
    """

    unquantized: str | None
    windows: int = 8
    length: int = 128
    keep: int = 3
    data: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 8
    trust_remote_code: bool = False


def layers_of(
    folder: Path,
    request: LayerRequest,
    progress: Progress,
    announce: Announce = lambda text: None,
) -> dict[str, Any]:
    """What each layer of a saved model costs, JSON-able: the fields of a `LayerReport`.

    announce: is told which data is taken. Raises ConfigError where it is not known what model it
    was made of, and what `measure`, loading and the data raise.
    """
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    quantized = load(folder, dtype, False, device)
    name = request.unquantized or quantized.manifest.get("model")
    if name is None:
        raise ConfigError(
            f"{folder} does not say which model it was made of; give it with --model MODEL"
        )
    original = read_model(find_model(str(name), request.trust_remote_code), dtype)
    refuse_quantized(original, str(name))
    check_fit(original.model, original.tokenizer, str(name))
    source = announced_data(request.data, (str(name),), (TEXT,), announce).source
    choosing, judging = text_windows(source, original.tokenizer, request.windows, request.length)
    report = measure(
        original.model.to(device),
        quantized.model.to(device),
        quantized.weights,
        choosing,
        judging,
        request.keep,
        request.batch_size,
        progress,
    )
    return facts(report)


def text_windows(
    source: Source, tokenizer: Any, count: int, length: int
) -> tuple[Windows, Windows]:
    """Twice as many windows as `count`, of as many articles as possible, in turns to each half.

    DataError where the text has fewer.
    """
    task = get_task(TEXT)
    spec = task.spec(source, limit=2 * count, length=length, spread=SPREAD)
    cut = article_windows(source.text(TEXT), tokenizer, spec)
    if len(cut.tokens) < 2 * count:
        raise DataError(
            f"the text has {len(cut.tokens)} windows of {length} tokens, and {2 * count} are "
            f"needed, {count} for the layers and as many to judge what is kept; ask fewer or "
            "shorter ones"
        )
    halves = []
    for first in (0, 1):
        articles = _labels(cut.articles[first::2])
        halves.append(Windows(cut.tokens[first::2], articles))
    return halves[0], halves[1]


def _labels(articles: Sequence[str | None]) -> list[str]:
    """What windows belong to; each to itself where that is not known."""
    return [name or f"window {place}" for place, name in enumerate(articles)]


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a model that is quantized for this alone."""
    return tempfile.TemporaryDirectory(prefix="qbench-layers-")
