"""compressed-tensors folders in the format `pack-quantized`: integer weights of llm-compressor.

    weight_packed      int32 (out, words)           codes, packed along the inputs
    weight_scale       (out, groups), (1,) or ()    w = scale * (code - zero)
    weight_zero_point  int32 (words, groups)        zero points, packed along the outputs; or plain,
                       int8 (out, groups)           zero - 2^(bits-1)
    weight_g_idx       int32 (in,)                  the group of each input, with actorder `group`
    weight_shape       int64 (2,)                   out and in

Codes and zero points are signed there, and what is packed is the number + 2^(bits-1), so these are
the codes and zero points of a uniform weight. Without weight_zero_point the zero point is
2^(bits-1), where the config calls the layer symmetric; older versions also left out a single zero
point that was this. Where weight_g_idx holds -1 it says nothing. The codes of a row are a
little-endian bit stream, which older versions broke at every word: a word held 32 // bits codes. At
2, 4 and 8 bits both are the same. The library multiplies in the dtype of the scale, here the
product is exact.

Source: compressed-tensors, compressors/pack_quantized/helpers.py, `unpack_from_int32`, for older
files compressors/quantized_compressors/pack_quantized.py; base.py beside the former,
`PackedQuantizationCompressor.decompress`; quantization/lifecycle/forward.py,
`_process_quantization`, for groups and g_idx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.errors import ModelError
from qbench.exchange.exact import to_stream
from qbench.exchange.integer_layout import SCALES
from qbench.formats import Uniform
from qbench.formats.packing import exact_half, packed_length, unpack

PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
)
_LAYER = "a compressed-tensors layer"
_AGAIN = "fetch the checkpoint again"
_CONFIG = "correct config_groups in its quantization_config"


@dataclass(frozen=True)
class PackedScheme:
    """What one group of config_groups states of its layers.

    group_size: inputs per scale; None where there is one per output or per matrix. symmetric:
    whether layers have no zero points.
    """

    bits: int
    group_size: int | None
    symmetric: bool = True


def from_compressed(tensors: Mapping[str, Tensor], schemes: Sequence[PackedScheme]) -> Uniform:
    """The weight (out, in) of the parts above, for groups that are runs of inputs.

    schemes: those that the checkpoint states; which one a layer has is seen on its tensors.
    ModelError where the tensors do not fit each other or any scheme, and where weight_g_idx
    scatters the groups.
    """
    layer = _Layer(tensors, schemes)
    if not layer.groups_are_runs:
        raise ModelError(
            f"weight_g_idx of {_LAYER} scatters its groups over the inputs (actorder), and the "
            "groups of a uniform weight are runs of inputs; use its dequantized weights"
        )
    middle = 2 ** (layer.bits - 1)
    zero = layer.zero_points()
    symmetric = zero is None or bool((zero == middle).all())
    return Uniform.from_codes(
        layer.codes(), exact_half(layer.scale), None if symmetric else zero, layer.bits
    )


def dequantize_compressed(tensors: Mapping[str, Tensor], schemes: Sequence[PackedScheme]) -> Tensor:
    """The weight (out, in) in float32, for any assignment of inputs to groups of equal length.

    Exact: a scale of 16 bits times a difference of 8-bit numbers fits the 24 bits of float32.
    ModelError as for `from_compressed`.
    """
    layer = _Layer(tensors, schemes)
    zero = layer.zero_points()
    middle = torch.full_like(layer.scale, 2.0 ** (layer.bits - 1), dtype=torch.float32)
    offset = middle if zero is None else zero.float()
    group = layer.group_of_each_input
    difference = layer.codes().float() - offset[:, group]
    return layer.scale.float()[:, group] * difference


def groups_are_in_order(tensors: Mapping[str, Tensor], schemes: Sequence[PackedScheme]) -> bool:
    """Whether `from_compressed` reads this layer; ModelError where its tensors do not fit."""
    return _Layer(tensors, schemes).groups_are_runs


class _Layer:
    """The tensors of one layer, held against each other.

    shape: (out, in). bits: of a code. scale: (out, groups). group_of_each_input: int64 (in,).
    """

    def __init__(self, tensors: Mapping[str, Tensor], schemes: Sequence[PackedScheme]) -> None:
        missing = sorted({"weight_packed", "weight_scale", "weight_shape"} - tensors.keys())
        if missing:
            raise ModelError(f"{_LAYER} lacks {', '.join(missing)}; {_AGAIN}")
        self._tensors = tensors
        self.shape = _stated_shape(tensors["weight_shape"])
        packed = tensors["weight_packed"]
        if packed.dim() != 2 or packed.dtype != torch.int32 or packed.shape[0] != self.shape[0]:
            raise _misfit("weight_packed", packed, f"int32 with {self.shape[0]} rows")
        self.bits = self._seen_bits([scheme.bits for scheme in schemes])
        self.scale = self._scale_per_output()
        self.group_of_each_input = self._groups(
            [scheme.group_size for scheme in schemes if scheme.bits == self.bits]
        )
        self._require_zero_points(schemes)
        in_order = torch.arange(self.shape[1]) // (self.shape[1] // self.scale.shape[1])
        self.groups_are_runs = torch.equal(self.group_of_each_input.cpu(), in_order)

    def codes(self) -> Tensor:
        """uint8 (out, in)."""
        return _unpacked(self._tensors["weight_packed"], self.bits, self.shape[1])

    def zero_points(self) -> Tensor | None:
        """uint8 (out, groups); None where the layer has none, which is 2^(bits-1)."""
        zero = self._tensors.get("weight_zero_point")
        if zero is None:
            return None
        if zero.dtype == torch.int32 and zero.dim() == 2:
            words = (_lengths(self.shape[0], self.bits)[0], self.scale.shape[1])
            if zero.shape[0] in _lengths(self.shape[0], self.bits) and zero.shape[1] == words[1]:
                return _unpacked(zero.T, self.bits, self.shape[0]).T.contiguous()
            raise _misfit("weight_zero_point", zero, f"int32 {words}")
        if zero.dtype != torch.int8 or not (zero.numel() == 1 or zero.shape == self.scale.shape):
            raise _misfit("weight_zero_point", zero, f"int8 {tuple(self.scale.shape)}")
        plain = zero.reshape(1, 1) if zero.numel() == 1 else zero
        shifted = plain.expand(self.scale.shape).int() + 2 ** (self.bits - 1)
        if shifted.min() < 0 or shifted.max() >= 2**self.bits:
            raise ModelError(
                f"a zero point of {_LAYER} lies outside the {self.bits} bits of its codes; {_AGAIN}"
            )
        return shifted.to(torch.uint8)

    def _seen_bits(self, stated: Sequence[int]) -> int:
        """Those of the stated bits that fill the words of a row; ModelError unless it is one."""
        words = self._tensors["weight_packed"].shape[1]
        fitting = {bits for bits in stated if words in _lengths(self.shape[1], bits)}
        if len(fitting) != 1:
            raise ModelError(
                f"weight_packed of {_LAYER} has {words} words for {self.shape[1]} inputs, and of "
                f"the stated bits {sorted(set(stated))} {sorted(fitting) or 'none'} fit; {_CONFIG}"
            )
        return fitting.pop()

    def _require_zero_points(self, schemes: Sequence[PackedScheme]) -> None:
        """ModelError where there are none, and every scheme that fits the layer states some."""
        if "weight_zero_point" in self._tensors or self._tensors["weight_scale"].numel() == 1:
            return
        groups = self.scale.shape[1]
        length = self.shape[1] // groups
        fitting = [
            scheme
            for scheme in schemes
            if scheme.bits == self.bits and (groups == 1 or scheme.group_size == length)
        ]
        if not any(scheme.symmetric for scheme in fitting):
            raise ModelError(
                f"{_LAYER} lacks weight_zero_point, and config_groups state symmetric=false for "
                f"its {self.bits} bits in {groups} groups; {_AGAIN}"
            )

    def _scale_per_output(self) -> Tensor:
        """(out, groups), also where the file has one scale for the whole matrix."""
        scale = self._tensors["weight_scale"]
        if scale.dtype not in SCALES:
            raise _misfit("weight_scale", scale, "floating numbers of 16 or 32 bits")
        if scale.numel() == 1:
            scale = scale.reshape(1, 1).expand(self.shape[0], 1)
        if scale.dim() != 2 or scale.shape[0] != self.shape[0]:
            raise _misfit("weight_scale", scale, f"{self.shape[0]} rows")
        return scale.contiguous()

    def _groups(self, stated: Sequence[int | None]) -> Tensor:
        """int64 (in,): the group of each input."""
        inputs = self.shape[1]
        groups = self.scale.shape[1]
        length = inputs // groups if groups else 0
        known = groups == 1 or length in stated
        if not length or inputs % groups or not known:
            sizes = sorted(size for size in set(stated) if size is not None)
            raise ModelError(
                f"{_LAYER} has {groups} groups for {inputs} inputs, which its group_size "
                f"{sizes or 'per output'} does not divide into as many; {_CONFIG}"
            )
        g_idx = self._tensors.get("weight_g_idx")
        if g_idx is None or not g_idx.numel() or bool((g_idx == -1).any()):
            return torch.arange(inputs) // length
        if g_idx.dtype not in (torch.int32, torch.int64):
            raise _misfit("weight_g_idx", g_idx, "int32 or int64")
        counts = torch.bincount(g_idx.long().clamp(0), minlength=groups)
        if g_idx.shape != (inputs,) or g_idx.min() < 0 or counts.tolist() != [length] * groups:
            raise ModelError(
                f"weight_g_idx of {_LAYER} does not assign {inputs} inputs to {groups} groups of "
                f"{length}; {_AGAIN}"
            )
        return g_idx.long()


def _stated_shape(shape: Tensor) -> tuple[int, int]:
    if shape.numel() != 2 or shape.is_floating_point():
        raise _misfit("weight_shape", shape, "two integers")
    out_features, in_features = map(int, shape.flatten().tolist())
    if not (0 < out_features < 2**31 and 0 < in_features < 2**31):
        raise ModelError(
            f"weight_shape of {_LAYER} is {(out_features, in_features)}, which no matrix has; "
            f"{_AGAIN}"
        )
    return out_features, in_features


def _lengths(count: int, bits: int) -> tuple[int, int]:
    """How many words hold `count` codes: as a stream, and of older versions."""
    return -(-count * bits // 32), -(-count // (32 // bits))


def _unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """(rows, words) int32 -> (rows, count) uint8.

    ModelError where the number of words tells no version from the other, and both differ.
    """
    stream, broken = _lengths(count, bits)
    per_word = 32 // bits
    if 32 % bits and stream == broken and count > per_word:
        raise ModelError(
            f"{_LAYER} packs {count} codes of {bits} bits into {stream} words, which versions of "
            "compressed-tensors do in two ways; save it again with a newer one, in more columns"
        )
    if words.shape[1] == stream:
        return unpack(to_stream(words)[:, : packed_length(count, bits)], bits, count)
    own = to_stream(words.reshape(-1, 1))[:, : packed_length(per_word, bits)]  # a word a row
    return unpack(own, bits, per_word).reshape(words.shape[0], -1)[:, :count]


def _misfit(part: str, tensor: Tensor, wanted: str) -> ModelError:
    return ModelError(
        f"{part} of {_LAYER} has shape {tuple(tensor.shape)} and {tensor.dtype}; wanted is "
        f"{wanted}; {_AGAIN}"
    )
