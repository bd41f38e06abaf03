"""What the readers of other programs' folders share: looking tensors up, and refusing what is odd.

The rules of names and shapes stand with each reader: `gptq.py`, `awq.py`, `compressed_tensors.py`.
`entry` is the quantization_config of the folder's config.json in all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import Entry, Shards
from qbench.inspection.pieces import Piece, Reading, dense_layers, dense_piece, part_piece

ADVICE = "copy the folder again, or inspect one that is whole"
# Parts of a layer in the layouts of GPTQ and of AWQ, and their items.
INTEGER_PARTS = {
    "qweight": "codes",
    "qzeros": "zero_points",
    "scales": "scales",
    "g_idx": "permutations",
}
# Scales of activations and of the cache are one number a layer, and no part of a weight.
_ACTIVATIONS = {
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
}
# Entries that are no hyper-parameters of the method: they are shown elsewhere, or are long lists.
_NOT_PARAMETERS = ("ignore", "modules_to_not_convert", "quant_method", "version", "bits")


def integer_reading(
    source: str,
    entry: Mapping[str, Any],
    shards: Shards,
    weight_counts: Mapping[str, int],
    bits: int,
    version: str | None,
) -> Reading:
    """The reading of a GPTQ or AWQ folder. weight_counts: out * in of each quantized layer."""
    pieces = list(quantized_pieces(shards, INTEGER_PARTS, weight_counts))
    return Reading(
        source=source,
        pieces=pieces,
        dense=dense_layers(pieces),
        format_version=version,
        method=source,
        parameters=parameters_of(entry),
        stated_bits=float(bits),
    )


def quantized_pieces(
    shards: Shards, items: Mapping[str, str], weight_counts: Mapping[str, int]
) -> Iterator[Piece]:
    """A piece for every tensor of the folder.

    items: the item of each part of a quantized layer, by the last word of its name. weight_counts:
    out * in of each quantized layer.
    """
    for name, tensor in shards.entries.items():
        layer, _, leaf = name.rpartition(".")
        if layer in weight_counts and leaf in items:
            item = items[leaf]
            parameters = weight_counts[layer] if item == "codes" else 0
            yield part_piece(name, layer, item, tensor.nbytes, parameters)
        elif leaf in _ACTIVATIONS:
            yield Piece(name, "other", tensor.nbytes)
        else:
            yield dense_piece(name, tensor.shape, tensor.nbytes)


def with_small_parts(
    shards: Shards,
    items: Mapping[str, str],
    small: Collection[str],
    weight_counts: Mapping[str, int],
) -> Iterator[Piece]:
    """A piece for every tensor of a folder whose layers keep their settings as tensors, too.

    items: of a quantized layer's parts, by what follows the layer's name. small: what else follows
    it; such tensors are bytes of the layer that are no item of their own. weight_counts: out * in
    of each quantized layer.
    """
    for name, tensor in shards.entries.items():
        layer = next((known for known in _prefixes(name) if known in weight_counts), None)
        part = name if layer is None else name[len(layer) + 1 :]
        if layer is not None and part in items:
            parameters = weight_counts[layer] if items[part] == "codes" else 0
            yield part_piece(name, layer, items[part], tensor.nbytes, parameters)
        elif layer is not None and part in small:
            yield part_piece(name, layer, "other", tensor.nbytes)
        else:
            yield dense_piece(name, tensor.shape, tensor.nbytes)


def _prefixes(name: str) -> Iterator[str]:
    """`a.b` and `a` for `a.b.c`."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def layers_with(shards: Shards, leaf: str) -> set[str]:
    """Names of the layers that have a tensor `.leaf`."""
    suffix = f".{leaf}"
    return {name.removesuffix(suffix) for name in shards.entries if name.endswith(suffix)}


def layers_required(shards: Shards, leaf: str) -> list[str]:
    """As `layers_with`, sorted; StoreError where there is none."""
    layers = layers_with(shards, leaf)
    if not layers:
        raise no_tensor(shards, leaf)
    return sorted(layers)


def matrix(shards: Shards, name: str) -> Entry:
    """The header of a tensor of two axes that is not empty; StoreError where it is none."""
    tensor = shards.entries.get(name)
    if tensor is None:
        raise StoreError(f"{shards.folder}: {name} is missing, not a matrix; {ADVICE}")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise StoreError(f"{shards.folder}: {name} is {tensor.shape}, not a matrix; {ADVICE}")
    return tensor


def group_order(shards: Shards, name: str) -> Entry | None:
    """The header of a g_idx (in,), whose length is the number of inputs; None without, or empty."""
    tensor = shards.entries.get(name)
    if tensor is None or not tensor.shape or tensor.shape[0] == 0:
        return None
    return tensor


def bits_along(tensor: Entry, axis: int) -> int:
    """How many bits one line of a matrix along this axis holds."""
    return tensor.shape[axis] * 8 * tensor.dtype.itemsize


def whole_number(entry: Mapping[str, Any], key: str, shards: Shards, allowed: range) -> int:
    """`entry[key]`, an integer of this range; StoreError where it is anything else."""
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise StoreError(
            f"{shards.folder}: the quantization_config states {key}={value!r}; "
            f"it must be from {allowed.start} to {allowed.stop - 1}; {ADVICE}"
        )
    return value


def parameters_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that a folder states of its method."""
    parameters = {}
    for key, value in entry.items():
        if key not in _NOT_PARAMETERS and value is not None:
            parameters[key] = value
    return parameters


def misfit(name: str, tensor: Entry, expected: str) -> StoreError:
    """The error of a tensor whose shape contradicts the others."""
    return StoreError(
        f"{tensor.file}: {name} {tensor.dtype} {tensor.shape} does not hold {expected}; {ADVICE}"
    )


def no_tensor(shards: Shards, leaf: str) -> StoreError:
    """The error of a folder without a single quantized layer."""
    return StoreError(
        f"{shards.folder}: no tensor ends in .{leaf}, as its quantization_config says; {ADVICE}"
    )
