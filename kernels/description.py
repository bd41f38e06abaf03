"""A weight across the border of an operator, which takes tensors and strings: parts, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.formats import from_tensors
from qbench.kernels.contract import Description, Kernel, Prepared, Request


def describe(weight: WeightFormat) -> str:
    """The JSON that `qbench::linear` needs beside the weight's parts."""
    return json.dumps(description_of(weight))


def description_of(weight: WeightFormat) -> Description:
    """What a weight is beside its tensors."""
    return {
        "format": weight.format,
        "parts": list(weight.to_tensors()),
        "spec": weight.spec(),
        "shape": list(weight.shape),
    }


@lru_cache(maxsize=4096)
def parse(text: str) -> Description:
    """The inverse of `describe`; the same object for the same text, not to be changed."""
    return json.loads(text)


def weight_from(parts: Sequence[Tensor], description: Description) -> WeightFormat:
    """The weight that these parts are, without a copy.

    parts: in the order of the description's `parts`. StoreError where their shapes or dtypes do not
    fit its `spec`.
    """
    tensors = dict(zip(description["parts"], parts, strict=True))
    return from_tensors(description["format"], tensors, description["spec"])


def moved(weight: WeightFormat, device: str) -> WeightFormat:
    """The same weight on a device, without a copy where it is there."""
    tensors = {part: tensor.to(device) for part, tensor in weight.to_tensors().items()}
    return from_tensors(weight.format, tensors, weight.spec())


def request_of(x: Tensor, parts: Sequence[Tensor], description: Description) -> Request:
    """The product of x (..., in) with this weight, as the choice of a kernel sees it."""
    out, columns = description["shape"]
    spec = description["spec"]
    bits = spec.get("bits")
    if description["format"] in ("binary", "rotated-binary"):
        bits = parts[0].shape[0]  # planes (bits, out, in/8)
    rows = x.numel() // columns
    return Request(
        description["format"],
        bits,
        spec.get("group_size"),
        (out, columns),
        x.device.type,
        x.dtype,
        rows,
    )


def prepare(kernel: Kernel, weight: WeightFormat) -> Prepared:
    """The weight as this kernel reads it: by its `prepare`, or a copy of the parts for `run`."""
    parts = [part.resolve_neg() for part in weight.to_tensors().values()]
    description = description_of(weight)
    if kernel.prepare is not None:
        return kernel.prepare(weight_from(parts, description))
    parts = [part.clone() for part in parts]

    def run(x: Tensor) -> Tensor:
        return kernel.run(x, parts, None, description)

    return Prepared(run, sum(part.nbytes for part in parts))
