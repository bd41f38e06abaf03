"""GPTQ checkpoints, as gptqmodel, transformers and vLLM read them.

    qweight int32 (in*bits/32, out)      codes, packed along the inputs
    qzeros  int32 (groups, out*bits/32)  zero points, packed along the outputs
    scales  float16 (groups, out)        w = scale * (code - zero)
    g_idx   int32 (in,)                  the group of each input; without it, where it is empty,
                                         and where it is all zeros, groups are runs of inputs

The checkpoint format `gptq` stores zero - 1 in qzeros, `gptq_v2` stores zero itself.
Source: gptqmodel, nn_modules/qlinear/__init__.py, `PackableQuantLinear.pack_block` and
`dequantize_weight`; zeros in g_idx: auto_gptq/modeling/_utils.py, `autogptq_post_init`. The words
of a column are a little-endian bit stream, also at 3 bits, where codes 10 and 21 of 32 straddle two
words: the very stream of `qbench.formats.packing`, transposed. So codes are moved and never
unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import gcd

import torch
from torch import Tensor

from qbench.errors import ConfigError, ModelError
from qbench.exchange.exact import ADVICE, half_scale, integer_zero, to_stream, to_words
from qbench.exchange.integer_layout import (
    inputs_per_group,
    require_parts,
    require_shapes,
    stored_scale,
)
from qbench.formats import Uniform
from qbench.formats.packing import pack, unpack

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")
_LAYER = "a GPTQ layer"


def checkpoint_format(weights: Iterable[Uniform]) -> str:
    """The `checkpoint_format` for a model of these weights.

    It is `gptq` where all zero points are 2^(bits-1), which a checkpoint calls `sym`, and else
    `gptq_v2`. Every reader knows `gptq`, but 0 wraps around in it, and gptqmodel refuses it where
    `sym` is false. vLLM reads `gptq_v2` since its pull request 26092. ConfigError where a zero
    point is not an integer.
    """
    for weight in weights:
        middle = 2 ** (weight.bits - 1)
        if (integer_zero(weight, "GPTQ") != middle).any():
            return "gptq_v2"
    return "gptq"


def to_gptq(weight: Uniform, checkpoint_format: str = "gptq") -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of a weight (out, in): the same numbers, laid out as above.

    A symmetric weight writes the zero point 2^(bits-1). ConfigError where GPTQ cannot hold the
    weight: bits other than 2, 3, 4 and 8, codes that do not fill 32-bit words, scales that are not
    float16, zero points that are not integers of `bits` bits, and 0 in the format `gptq`.
    """
    _check_request(weight.bits, checkpoint_format)
    _check_words(weight)
    columns = torch.arange(weight.in_features, dtype=torch.int32, device=weight.codes.device)
    return {
        "qweight": to_words(weight.codes).T.contiguous(),
        "qzeros": _packed_zeros(weight, checkpoint_format),
        "scales": half_scale(weight, "GPTQ").T.contiguous(),
        "g_idx": columns // weight.group_size,
    }


def from_gptq(
    tensors: Mapping[str, Tensor],
    bits: int,
    group_size: int,
    checkpoint_format: str = "gptq",
    sym: bool = False,
) -> Uniform:
    """The weight (out, in) of qweight, qzeros, scales and, if there, g_idx, in the layout above.

    group_size: inputs per group, -1 for one group per output. sym: what the checkpoint says of
    itself; where its zero points are all 2^(bits-1), the weight is then symmetric (zero_point
    None), otherwise they are kept as they are. ConfigError for bits or a format that do not exist.
    ModelError where the tensors do not fit each other, where the inputs are reordered (act-order),
    and where a `gptq` zero point wrapped around.
    """
    _check_request(bits, checkpoint_format)
    in_features, group = _check_tensors(tensors, bits, group_size)
    codes = to_stream(tensors["qweight"].T)  # (out, in*bits/8)
    scale = stored_scale(tensors["scales"])  # (out, groups)
    zero = _unpacked_zeros(tensors["qzeros"], bits, checkpoint_format, scale.shape[0])
    symmetric = sym and bool((zero == 2 ** (bits - 1)).all())
    return Uniform(
        codes=codes,
        stored_scale=scale,
        stored_zero=None if symmetric else pack(zero, bits),
        bits=bits,
        in_features=in_features,
        group_size=group,
    )


def measured_settings(
    tensors: Mapping[str, Tensor], group_size: int, others: Iterable[int]
) -> tuple[int, int]:
    """(bits, group size) of a layer, by the shapes of its tensors.

    group_size: what the checkpoint states for all; others: for some layers. The first that fits the
    number of groups counts. ModelError where none does.
    """
    require_parts(_LAYER, tensors)
    out_features = tensors["qweight"].shape[1]
    bits = 32 * tensors["qzeros"].shape[1] // out_features
    _check_request(bits, "gptq")
    in_features = 32 * tensors["qweight"].shape[0] // bits
    groups = tensors["scales"].shape[0]
    for size in (group_size, *others, -1):
        length = in_features if size == -1 else size
        if length > 0 and -(-in_features // length) == groups:
            return bits, size
    raise ModelError(
        f"{_LAYER} has {groups} groups for {in_features} inputs, and no group size that its "
        "checkpoint states makes as many; correct dynamic in its quantization_config"
    )


def groups_are_runs(tensors: Mapping[str, Tensor], bits: int, group_size: int) -> bool:
    """Whether group k holds the inputs k*group_size .. (k+1)*group_size - 1, all groups alike.

    ModelError where parts are missing.
    """
    require_parts(_LAYER, tensors)
    _check_request(bits, "gptq")
    in_features = tensors["qweight"].shape[0] * 32 // bits
    length = in_features if group_size == -1 else group_size
    if length < 1 or in_features % length:
        return False
    g_idx = _order(tensors, in_features)
    if g_idx is None:
        return True
    return torch.equal(g_idx, torch.arange(in_features, device=g_idx.device) // length)


def dequantize_gptq(
    tensors: Mapping[str, Tensor], bits: int, group_size: int, checkpoint_format: str = "gptq"
) -> Tensor:
    """The weight (out, in) in float32, for any assignment of inputs to groups.

    Exact: a float16 scale times a difference of 8-bit numbers fits the 24 bits of float32. Without
    g_idx the groups are runs, of which the last may be shorter. ModelError where the tensors do not
    fit each other.
    """
    require_parts(_LAYER, tensors)
    _check_request(bits, checkpoint_format)
    rows, out_features = tensors["qweight"].shape
    in_features = rows * 32 // bits
    groups = tensors["scales"].shape[0]
    require_shapes(
        _LAYER,
        tensors,
        {
            "qweight": (in_features * bits // 32, out_features),
            "qzeros": (groups, out_features * bits // 32),
            "scales": (groups, out_features),
        },
        f"{bits} bits in {groups} groups want",
        advice="bits",
    )
    group = _group_of_each_input(_order(tensors, in_features), in_features, group_size, groups)
    scale = stored_scale(tensors["scales"]).float()[:, group]  # (out, in)
    zero = _unpacked_zeros(tensors["qzeros"], bits, checkpoint_format, out_features)
    codes = unpack(to_stream(tensors["qweight"].T), bits, in_features)
    return scale * (codes.float() - zero.float()[:, group])


def _group_of_each_input(
    g_idx: Tensor | None, in_features: int, group_size: int, groups: int
) -> Tensor:
    """(in,) int64; ModelError where it names groups that are not there."""
    if g_idx is None:
        length = in_features if group_size == -1 else group_size
        if length < 1:
            raise ModelError(f"group_size={group_size} of {_LAYER} is no number of inputs")
        g_idx = torch.arange(in_features) // length
    if g_idx.shape != (in_features,) or g_idx.min() < 0 or g_idx.max() >= groups:
        raise ModelError(
            f"g_idx of {_LAYER} has shape {tuple(g_idx.shape)} and groups up to {int(g_idx.max())} "
            f"for {in_features} inputs in {groups} groups; fetch the checkpoint again"
        )
    return g_idx


def has_order(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a g_idx says to which group each input belongs, be it that groups are runs."""
    g_idx = tensors.get("g_idx")
    return g_idx is not None and g_idx.numel() > 0


def _order(tensors: Mapping[str, Tensor], in_features: int) -> Tensor | None:
    """g_idx, int64; None where it says nothing, and groups are runs of inputs.

    Nothing but zeros says nothing: as groups they would leave all scales but the first unused.
    ModelError where the groups are no integers, which could be rounded.
    """
    if not has_order(tensors):
        return None
    g_idx = tensors["g_idx"]
    if g_idx.dtype not in (torch.int32, torch.int64):
        raise ModelError(
            f"g_idx of {_LAYER} is {g_idx.dtype}, and numbers of groups are int32 or int64; fetch "
            "the checkpoint again"
        )
    return None if g_idx.shape == (in_features,) and not g_idx.any() else g_idx.long()


def _packed_zeros(weight: Uniform, checkpoint_format: str) -> Tensor:
    """(groups, out*bits/32) int32."""
    zero = integer_zero(weight, "GPTQ")  # (out, groups)
    least = 1 if checkpoint_format == "gptq" else 0  # what is stored as 0
    most = 2**weight.bits - 1
    if zero.min() < least or zero.max() > most:
        worst = int(zero.min() if zero.min() < least else zero.max())
        other = "use 'gptq_v2', which holds 0" if worst == 0 else ADVICE
        raise ConfigError(
            f"the zero point {worst} cannot be stored in the checkpoint format "
            f"{checkpoint_format!r}, which holds {least}..{most} at {weight.bits} bits; {other}"
        )
    return to_words(pack((zero - least).T.to(torch.uint8), weight.bits))


def _unpacked_zeros(qzeros: Tensor, bits: int, checkpoint_format: str, out_features: int) -> Tensor:
    """(groups, out*bits/32) int32 -> (out, groups) uint8."""
    stored = unpack(to_stream(qzeros), bits, out_features).T.contiguous()
    if checkpoint_format == "gptq_v2":
        return stored
    largest = 2**bits - 1
    if (stored == largest).any():
        raise ModelError(
            f"a zero point is stored as {largest} in the checkpoint format 'gptq', which stores "
            f"zero - 1: some programs mean 0 by it, some {2**bits}, some carry into the next one; "
            "have the program that wrote the checkpoint save it as 'gptq_v2'"
        )
    return stored + 1


def _check_request(bits: int, checkpoint_format: str) -> None:
    if bits not in BITS:
        allowed = ", ".join(map(str, BITS))
        raise ConfigError(f"GPTQ has no codes of {bits} bits; allowed are {allowed}; {ADVICE}")
    if checkpoint_format not in FORMATS:
        raise ConfigError(
            f"unknown checkpoint format {checkpoint_format!r} of GPTQ; "
            f"choose one of {list(FORMATS)}"
        )


def _check_words(weight: Uniform) -> None:
    """ConfigError where the codes of an input or an output do not fill 32-bit words."""
    out_features, in_features = weight.shape
    step = 32 // gcd(32, weight.bits)
    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if size % step:
            raise ConfigError(
                f"{name}={size} at {weight.bits} bits does not fill 32-bit words; "
                f"GPTQ needs a multiple of {step} inputs and outputs; {ADVICE}"
            )


def _check_tensors(tensors: Mapping[str, Tensor], bits: int, group_size: int) -> tuple[int, int]:
    """(in_features, inputs per group). ModelError where a tensor is missing or does not fit."""
    require_parts(_LAYER, tensors)
    rows, out_features = tensors["qweight"].shape
    in_features = rows * 32 // bits
    group = inputs_per_group(_LAYER, in_features, group_size)
    groups = in_features // group
    shapes = {
        "qweight": (in_features * bits // 32, out_features),
        "qzeros": (groups, out_features * bits // 32),
        "scales": (groups, out_features),
    }
    settings = f"{bits} bits in groups of {group_size} want"
    require_shapes(_LAYER, tensors, shapes, settings, advice="bits and group_size")
    _check_order(_order(tensors, in_features), in_features, group)
    return in_features, group


def _check_order(g_idx: Tensor | None, in_features: int, group: int) -> None:
    """ModelError unless group k holds the inputs k*group .. (k+1)*group - 1."""
    if g_idx is None:
        return
    consecutive = torch.arange(in_features, device=g_idx.device) // group
    if g_idx.shape != consecutive.shape or not torch.equal(g_idx, consecutive):
        raise ModelError(
            "g_idx of a GPTQ layer does not number the inputs in consecutive groups: the "
            "checkpoint was quantized with act-order (desc_act=true), whose groups are scattered "
            "over the inputs, and the groups of a uniform weight are runs of inputs; use a "
            "checkpoint with desc_act=false, or its dequantized weights"
        )
