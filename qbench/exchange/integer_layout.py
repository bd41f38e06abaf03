"""What GPTQ and AWQ share on reading: qweight, qzeros and scales that fit each other.

`layer` is what a message calls the layer: "a GPTQ layer".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qbench.errors import ModelError

PARTS = ("qweight", "qzeros", "scales")
SCALES = (torch.float16, torch.bfloat16, torch.float32)


def require_parts(layer: str, tensors: Mapping[str, Tensor]) -> None:
    """ModelError where one of PARTS is missing."""
    missing = sorted(set(PARTS) - tensors.keys())
    if missing:
        raise ModelError(
            f"{layer} lacks {', '.join(missing)}; it has {sorted(tensors)}; "
            "fetch the checkpoint again"
        )
    for part in PARTS:
        if tensors[part].dim() != 2 or 0 in tensors[part].shape:
            raise ModelError(
                f"{part} of {layer} has shape {tuple(tensors[part].shape)}, which is no matrix; "
                "fetch the checkpoint again"
            )


def inputs_per_group(layer: str, in_features: int, group_size: int) -> int:
    """group_size, or all inputs where it is -1. ModelError where it does not divide them."""
    group = in_features if group_size == -1 else group_size
    if group < 1 or in_features % group:
        raise ModelError(
            f"group_size={group_size} does not divide the {in_features} inputs of {layer}; "
            "correct it in the checkpoint's quantization_config"
        )
    return group


def require_shapes(
    layer: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    settings: str,
    advice: str,
) -> None:
    """ModelError where a part has another shape or dtype: scales one of SCALES, others int32 words.

    shapes: those that the settings ask for, by part. settings: with its verb, such as "4 bits in
    groups of 128 want". advice: which entries of the checkpoint to check.
    """
    for name, shape in shapes.items():
        tensor = tensors[name]
        dtypes = SCALES if name == "scales" else (torch.int32,)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ModelError(
                f"{name} of {layer} has shape {tuple(tensor.shape)} and {tensor.dtype}; "
                f"{settings} {shape} in {allowed}; "
                f"check {advice} in the checkpoint's quantization_config"
            )


def stored_scale(scales: Tensor) -> Tensor:
    """(groups, out) as in the file -> (out, groups), float16 or float32 as in a uniform weight."""
    scale = scales.T.contiguous()
    return scale if scale.dtype == torch.float16 else scale.float()
