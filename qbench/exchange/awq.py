"""AWQ checkpoints in the GEMM layout (`version: gemm`), 4 bits.

    qweight int32 (in, out/8)      codes, eight outputs a word
    qzeros  int32 (groups, out/8)  zero points, likewise
    scales  float16 (groups, out)  w = scale * (code - zero)

Nibble i of a word, from the lowest, is output 8*k + (0, 2, 4, 6, 1, 3, 5, 7)[i]. Source: autoawq,
awq/modules/linear/gemm.py, `WQLinear_GEMM.from_linear`, and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qbench.errors import ConfigError
from qbench.exchange.exact import to_stream
from qbench.exchange.integer_layout import (
    inputs_per_group,
    require_parts,
    require_shapes,
    stored_scale,
)
from qbench.formats import Uniform
from qbench.formats.packing import unpack

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each nibble
NIBBLE = [ORDER.index(output) for output in range(8)]  # the nibble of each output
_LAYER = "an AWQ layer"


def from_awq(tensors: Mapping[str, Tensor], bits: int = 4, group_size: int = 128) -> Uniform:
    """The weight (out, in) of qweight, qzeros and scales in the layout above.

    Zero points are always integers. group_size: inputs per group, -1 for one group per output.
    ConfigError for bits other than 4. ModelError where the tensors do not fit each other, as those
    of the other layouts (GEMV, Marlin) do not.
    """
    if bits != 4:
        raise ConfigError(
            f"AWQ's GEMM layout has no codes of {bits} bits; allowed is 4; "
            "correct bits in the request"
        )
    _check_tensors(tensors, group_size)
    return Uniform.from_codes(
        codes=_outputs_first(tensors["qweight"]),
        scale=stored_scale(tensors["scales"]),
        zero_point=_outputs_first(tensors["qzeros"]),
        bits=4,
    )


def _outputs_first(words: Tensor) -> Tensor:
    """(n, out/8) int32 -> (out, n) uint8."""
    nibbles = unpack(to_stream(words), 4, 8 * words.shape[1])  # (n, out), eight in ORDER
    in_order = nibbles.unflatten(1, (-1, 8))[..., NIBBLE].flatten(1)
    return in_order.T.contiguous()


def _check_tensors(tensors: Mapping[str, Tensor], group_size: int) -> None:
    """ModelError where a tensor is missing or does not fit the others."""
    require_parts(_LAYER, tensors)
    in_features, words = tensors["qweight"].shape
    groups = in_features // inputs_per_group(_LAYER, in_features, group_size)
    shapes = {
        "qweight": (in_features, words),
        "qzeros": (groups, words),
        "scales": (groups, 8 * words),
    }
    settings = f"the GEMM layout in groups of {group_size} wants"
    require_shapes(_LAYER, tensors, shapes, settings, advice="group_size and version")
