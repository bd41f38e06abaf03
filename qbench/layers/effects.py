"""What each part of a quantized model costs, and what keeping some of them as they are buys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qbench.formats.dense import narrowed
from qbench.layers.passes import Errors, Hidden, Passes, Reference
from qbench.layers.units import WHOLE, Unit, exchanged, units
from qbench.models.blocks import quantizable, read_weight
from qbench.stats.difference import Difference, mean_interval

HEAD_BLOCKS = 2.0  # about what the head and the divergence cost, for the time that is left
Progress = Callable[[float, str], None]
Labels = Sequence[object]


@dataclass(frozen=True)
class Effect:
    """Of one part, KL in nats with 95 % intervals over the windows' clusters.

    alone: of the unquantized model with this part quantized. gain: by how much the quantized
    model's KL falls where this part is restored. weight_error, output_error: squared, relative to
    the weight's and the output's own; the latter on the unquantized model's inputs, None for a
    whole block and where nothing went through. bits: measured, per weight; None where unknown.
    """

    name: str
    block: int
    kind: str
    alone: Difference
    gain: Difference
    weight_error: float
    output_error: float | None
    bits: float | None
    weights: int


@dataclass(frozen=True)
class Kept:
    """Some parts restored together, on windows that did not choose them.

    before, after: mean KL in nats. gain: by how much it falls, with its interval. summed: what the
    separate gains add up to. bits_before, bits_after: stored bits per weight over all layers that
    the file counts as quantized, whether they are parts or not, the head among them; after with
    those that are kept stored as they are. None where unknown.
    """

    names: tuple[str, ...]
    before: float
    after: float
    gain: Difference
    summed: float
    bits_before: float | None
    bits_after: float | None


@dataclass(frozen=True)
class LayerReport:
    """total: KL of the whole quantized model on the windows that choose. kept: None for none."""

    total: Difference
    effects: tuple[Effect, ...]
    kept: Kept | None


@dataclass(frozen=True)
class Stored:
    """What layers take in files, by their full names; without those of which it is not known.

    quantized: bits and number of weights of those that the quantized model's bits per weight are
    counted over. kept: bits of the weight where it stays as it is.
    """

    quantized: Mapping[str, tuple[int, int]]
    kept: Mapping[str, int]

    def bits_per_weight(self, names: Iterable[str]) -> float | None:
        """Of these layers as they are quantized; None without any."""
        layers = [self.quantized[name] for name in names]
        weights = sum(count for _, count in layers)
        return sum(bits for bits, _ in layers) / weights if weights else None

    def under(self, names: Iterable[str]) -> list[str]:
        """The layers of these parts, each of which is a layer or a block."""
        layers = []
        for name in names:
            inside = f"{name}."
            if name in self.quantized:
                layers.append(name)
            else:
                layers += [own for own in self.quantized if own.startswith(inside)]
        return layers

    def with_kept(self, names: Iterable[str]) -> float | None:
        """Bits per weight of all layers, the parts of these names as they are; None if unknown."""
        exchanged = dict(self.quantized)
        for name in names:
            layers = self.under([name])
            if not layers or any(layer not in self.kept for layer in layers):
                return None
            for layer in layers:
                exchanged[layer] = self.kept[layer], self.quantized[layer][1]
        return Stored(exchanged, {}).bits_per_weight(exchanged)


@dataclass(frozen=True)
class Windows:
    """tokens (int64, (windows, length)). clusters: which windows are of one article."""

    tokens: Tensor
    clusters: Labels


def measure(
    original: Any,
    quantized: Any,
    stored: Stored,
    choosing: Windows,
    judging: Windows,
    keep: int,
    batch_size: int,
    progress: Progress,
) -> LayerReport:
    """Every part alone and restored, and the `keep` most rewarding ones restored together.

    original, quantized: two models of one shape, the latter with its weights dequantized, on one
    device; they are as they were in the end. stored: for the bits. choosing, judging: windows for
    the parts, and others for what is kept.

    Raises ConfigError where the models do not belong together.
    """
    parts = units(original, quantized)
    full, low = (Passes(model, choosing.tokens, batch_size) for model in (original, quantized))
    reference = Reference(full)
    total = reference.divergences(low.logits(0, low.start))
    errors, alone, restored = _every_part(parts, full, low, reference, progress)
    effects = []
    for unit in parts:
        effect = Effect(
            name=unit.name,
            block=unit.block,
            kind=unit.kind,
            alone=mean_interval(alone[unit.name], choosing.clusters),
            gain=mean_interval(total - restored[unit.name], choosing.clusters),
            weight_error=_weight_error(unit),
            output_error=errors.of(unit.name),
            bits=stored.bits_per_weight(stored.under([unit.name])),
            weights=unit.weights,
        )
        effects.append(effect)
    kept = None
    if keep:
        chosen = _most_rewarding(effects, keep)
        summed = sum(effects[place].gain.value for place in chosen)
        models = (original, quantized)
        rewarding = [parts[place] for place in chosen]
        kept = _kept(rewarding, models, stored, judging, batch_size, summed)
    progress(1.0, "done")
    whole = mean_interval(total, choosing.clusters)
    if math.isfinite(whole.low):  # nothing diverges less than not at all
        whole = replace(whole, low=max(0.0, whole.low))
    return LayerReport(whole, tuple(effects), kept)


def _most_rewarding(effects: Sequence[Effect], count: int) -> list[int]:
    """The places of the parts that gain most when they are restored, ascending."""
    order = sorted(range(len(effects)), key=lambda place: -effects[place].gain.value)
    return sorted(order[:count])


def bits_as_they_are(model: Any) -> dict[str, int]:
    """By layer, the bits of its weight where a rule leaves it as it is, and it is stored."""
    bits = {}
    for name, layer in quantizable(model).items():
        bits[name] = 8 * narrowed(read_weight(layer)).nbytes
    return bits


def facts(report: LayerReport) -> dict[str, Any]:
    """JSON-able: of a difference `value`, `low` and `high`, None where these are not finite."""
    return _jsonable(report)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Difference):
        ends = {"value": value.value, "low": value.low, "high": value.high}
        return {name: end if math.isfinite(end) else None for name, end in ends.items()}
    if is_dataclass(value):
        return {entry.name: _jsonable(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [_jsonable(member) for member in value]
    return value


def _every_part(
    parts: Sequence[Unit], full: Passes, low: Passes, reference: Reference, progress: Progress
) -> tuple[Errors, dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Errors of outputs, and by name KL (windows,) of each part alone, and where it is restored.

    With a part exchanged, both models are measured: each has that of the other.
    """
    errors = Errors()
    alone: dict[str, NDArray[np.float64]] = {}
    restored: dict[str, NDArray[np.float64]] = {}
    costs = [len(full.blocks) - unit.block + HEAD_BLOCKS for unit in parts]
    done = 0.0
    of_full, of_low = full.start, low.start
    for index in range(len(full.blocks)):
        mine = [unit for unit in parts if unit.block == index]
        for unit in mine:
            place = len(alone) + 1
            progress(done / sum(costs), f"{place}/{len(parts)} {unit.name}")
            with exchanged([unit]):
                alone[unit.name] = reference.divergences(full.logits(index, of_full))
                restored[unit.name] = reference.divergences(low.logits(index, of_low))
            done += len(full.blocks) - index + HEAD_BLOCKS
        of_full = _watched(mine, full, low, errors, index, of_full)
        of_low = low.through(index, of_low)
    return errors, alone, restored


def _watched(
    mine: Sequence[Unit], full: Passes, low: Passes, errors: Errors, index: int, hidden: Hidden
) -> Hidden:
    """The states behind a block of the unquantized model; its layers' errors are noted."""
    hooks = []
    for unit in mine:
        if unit.kind != WHOLE:
            layer = full.blocks[index].get_submodule(unit.kind)
            other = low.blocks[index].get_submodule(unit.kind)
            hooks.append(errors.watch(unit.name, layer, other))
    try:
        return full.through(index, hidden)
    finally:
        for hook in hooks:
            hook.remove()


def _kept(
    chosen: Sequence[Unit],
    models: tuple[Any, Any],
    stored: Stored,
    judging: Windows,
    batch_size: int,
    summed: float,
) -> Kept:
    """The chosen parts restored together, on the windows that judge."""
    full, low = (Passes(model, judging.tokens, batch_size) for model in models)
    reference = Reference(full)
    before = reference.divergences(low.logits(0, low.start))
    with exchanged(chosen):
        after = reference.divergences(low.logits(0, low.start))
    names = tuple(unit.name for unit in chosen)
    bits_after = stored.with_kept(names)
    return Kept(
        names=names,
        before=float(before.mean()),
        after=float(after.mean()),
        gain=mean_interval(before - after, judging.clusters),
        summed=summed,
        bits_before=None if bits_after is None else stored.with_kept(()),
        bits_after=bits_after,
    )


def _weight_error(unit: Unit) -> float:
    """The squared error of a part's parameters, relative to their own square."""
    error = size = 0.0
    for own, other in unit.pairs:
        error += float((own.detach() - other.detach()).double().square().sum())
        size += float(own.detach().double().square().sum())
    return error / size if size else 0.0
