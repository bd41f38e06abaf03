"""AWQ checkpoints in the GEMM layout (`version: gemm`), 4 bits.

    qweight int32 (in, out/8)      codes, eight outputs a word
    qzeros  int32 (groups, out/8)  zero points, likewise
    scales  float16 (groups, out)  w = scale * (code - zero)

Nibble i of a word, from the lowest, is output 8*k + (0, 2, 4, 6, 1, 3, 5, 7)[i]. Source: autoawq,
awq/modules/linear/gemm.py, `WQLinear_GEMM.from_linear`, and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qbench.errors import ConfigError, ModelError
from qbench.exchange.exact import to_stream
from qbench.formats import Uniform
from qbench.formats.packing import unpack

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each nibble
NIBBLE = [ORDER.index(output) for output in range(8)]  # the nibble of each output


def from_awq(tensors: Mapping[str, Tensor], bits: int = 4, group_size: int = 128) -> Uniform:
    """The weight (out, in) of qweight, qzeros and scales in the layout above; zero points are always integers.

    group_size: inputs per group, -1 for one group per output. ConfigError for bits other than 4.
    ModelError where the tensors do not fit each other, as those of the other layouts (GEMV, Marlin)
    do not.
    """
    if bits != 4:
        raise ConfigError(
            f"AWQ's GEMM layout has no codes of {bits} bits; allowed is 4; correct bits in the request"
        )
    _check_tensors(tensors, group_size)
    scale = tensors["scales"].T.contiguous()  # (out, groups)
    return Uniform.from_codes(
        codes=_outputs_first(tensors["qweight"]),
        scale=scale if scale.dtype == torch.float16 else scale.float(),
        zero_point=_outputs_first(tensors["qzeros"]),
        bits=4,
    )


def _outputs_first(words: Tensor) -> Tensor:
    """(n, out/8) int32 -> (out, n) uint8."""
    nibbles = unpack(to_stream(words), 4, 8 * words.shape[1])
    return nibbles.unflatten(1, (-1, 8))[..., NIBBLE].flatten(1).T.contiguous()


def _check_tensors(tensors: Mapping[str, Tensor], group_size: int) -> None:
    """ModelError where a tensor is missing or does not fit the others."""
    missing = sorted({"qweight", "qzeros", "scales"} - tensors.keys())
    if missing:
        raise ModelError(
            f"an AWQ layer lacks {', '.join(missing)}; it has {sorted(tensors)}; fetch the checkpoint again"
        )
    in_features, words = tensors["qweight"].shape
    group = in_features if group_size == -1 else group_size
    if group < 1 or in_features % group:
        raise ModelError(
            f"group_size={group_size} does not divide the {in_features} inputs of an AWQ layer; "
            "correct it in the checkpoint's quantization_config"
        )
    expected = {
        "qweight": (in_features, words),
        "qzeros": (in_features // group, words),
        "scales": (in_features // group, 8 * words),
    }
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape or (
            name != "scales" and tensors[name].dtype != torch.int32
        ):
            raise ModelError(
                f"{name} of an AWQ layer has shape {tuple(tensors[name].shape)} and {tensors[name].dtype}; the GEMM "
                f"layout in groups of {group_size} wants {shape}{'' if name == 'scales' else ' in int32'}; check "
                "group_size and version in the checkpoint's quantization_config"
            )
