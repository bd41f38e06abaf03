"""From names to what each layer of a quantized model costs: what `qbench layers` does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qbench.calibration.walk import Progress
from qbench.environment import pick_device, pick_dtype
from qbench.errors import ConfigError, DataError, StoreError, reason_of
from qbench.experiment.data_choice import announced_data
from qbench.inspection.report import stored_layers
from qbench.layers.effects import LayerReport, Stored, Windows, bits_as_they_are, facts, measure
from qbench.layers.units import WHOLE
from qbench.models.blocks import quantizable
from qbench.models.identity import Announce
from qbench.models.loading import load_config
from qbench.models.source import ModelSource, find_model
from qbench.models.tokenizers import check_fit
from qbench.quantization import load, read_model, refuse_quantized
from qbench.scheme import AS_IT_IS, SKIP, LayerRule, Scheme
from qbench.tasks.article_windows import article_windows
from qbench.tasks.data import Source
from qbench.tasks.registry import get_task

TEXT = "wikitext"  # the task whose text and windows are taken
SPREAD = 2  # windows of one article, at most
FULL = "float32"
HALVES = ("bfloat16", "float16")


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
    announce: Announce,
) -> dict[str, Any]:
    """What each layer of a saved model costs, JSON-able: the fields of a `LayerReport`.

    And `flags`: of `qbench run` and `quantize` for what is kept, and for the quantized model's own
    rules and head; its method, bits and group size are not among them. `budget`: the fraction of
    bits that was divided between its layers, or None.

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
    asked = _scheme_of(folder, quantized.manifest)
    place = find_model(str(name), request.trust_remote_code)
    original = read_model(place, dtype)
    refuse_quantized(original, str(name))
    check_fit(original.model, original.tokenizer, str(name))
    stored = Stored(stored_layers(folder), _bits_as_they_are(place, original.model, dtype))
    source = announced_data(request.data, (str(name),), (TEXT,), announce).source
    choosing, judging = text_windows(source, original.tokenizer, request.windows, request.length)
    report = measure(
        original.model.to(device),
        quantized.model.to(device),
        stored,
        choosing,
        judging,
        request.keep,
        request.batch_size,
        progress,
    )
    flags: list[str] = []
    if report.kept is not None:
        flags = flags_keeping(_globs(report), asked, list(quantizable(original.model)))
    return facts(report) | {"flags": flags, "budget": None if asked is None else asked.budget}


def _globs(report: LayerReport) -> list[str]:
    """Of the layers in the parts that are kept."""
    names = () if report.kept is None else report.kept.names
    whole = {effect.name for effect in report.effects if effect.kind == WHOLE}
    return [f"{name}.*" if name in whole else name for name in names]


def flags_keeping(globs: Sequence[str], asked: Scheme | None, names: list[str]) -> list[str]:
    """The flags of a scheme's rules and head, behind rules that leave some layers as they are.

    globs: of these layers. asked: of a quantized model, None where it does not say so. names: of
    all linear layers inside the blocks. A rule that is left without any would be refused, and is no
    flag.
    """
    rules = [LayerRule(glob, AS_IT_IS) for glob in globs]
    rules += asked.rules if asked is not None else ()
    flags: list[str] = []
    for rule in rules:
        left = [name for name in names if not fnmatchcase(name, rule.layers)]
        if len(left) < len(names):
            bits = SKIP if rule.bits == AS_IT_IS else rule.asked
            flags += ["--layers", f"{rule.layers}={bits}"]
        names = left
    if asked is not None and asked.head_bits is not None:
        flags += ["--head-bits", str(asked.head_bits)]
    return flags


def _scheme_of(folder: Path, manifest: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a folder of ours states; StoreError where it is none."""
    if "scheme" not in manifest:
        return None
    try:
        return TypeAdapter(Scheme).validate_python(manifest["scheme"])
    except (ValidationError, ConfigError) as error:
        raise StoreError(
            f"{folder / 'config.json'}: the scheme {manifest['scheme']!r} is invalid: "
            f"{reason_of(error)}; quantize again"
        ) from None


def _bits_as_they_are(source: ModelSource, model: Any, dtype: str) -> dict[str, int]:
    """As the function of this name; model: of this source, read in this dtype.

    Where that may have narrowed its weights, it is read once more; a config that states half
    precision is believed.
    """
    stated = str(getattr(load_config(source), "dtype", None)).removeprefix("torch.")
    if dtype != FULL and stated not in HALVES:
        model = read_model(source, FULL).model
    return bits_as_they_are(model)


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
