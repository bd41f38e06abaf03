"""How the Triton kernels are launched: defaults by shape, and one file of tuned ones per GPU model.

A tuned file lies in `tuned` beside this module (see `qbench.kernels.tuned`) and has the fields of
`Config`. The defaults come from the instruction
counts and registers of the compiled kernels (`benchmarks/aot.py`), not from timings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from qbench.kernels.gpu.triton_layout import Planes
from qbench.kernels.tuned import TunedFiles, key_of

Kind = Literal["skinny", "large", "dense"]
PROCESSORS = 132  # where no GPU says otherwise


@dataclass(frozen=True)
class Config:
    """One launch.

    kind: the kernel. block_n, block_m, block_k: outputs, rows of x and inputs of a block. split:
    into how many parts the inputs are cut, whose sums are added afterwards. warps, stages: Triton's
    options.
    """

    kind: Kind
    block_n: int = 128
    block_m: int = 16
    block_k: int = 64
    split: int = 1
    warps: int = 4
    stages: int = 3


TUNED = TunedFiles(Path(__file__).resolve().parent / "tuned", lambda fields: Config(**fields))
# (rows of x at most, launch): the first that fits; `split` is filled in by shape
DEFAULTS: tuple[tuple[int, Config], ...] = (
    (8, Config("skinny", block_m=8, block_k=128)),
    (16, Config("skinny", block_m=16, block_k=128)),
    (32, Config("large", block_n=64, block_m=32, block_k=128)),
    (64, Config("large", block_n=64, block_m=64, block_k=128)),
    (1024, Config("large", block_m=128, warps=8)),
)
DENSE = Config("dense")
FLOAT32 = Config("skinny", block_n=64, block_k=32)  # no matrix units: larger blocks spill


def choose(m: int, planes: Planes, dtype: torch.dtype) -> Config:
    """The launch for x of (m, in): what this GPU's file says of this shape, else a default."""
    device = planes.words.device
    n, k = planes.shape
    if device.type != "cuda":
        return default(m, n, k, dtype)
    measured = TUNED.of(torch.cuda.get_device_name(device)).get(key_of(m, planes, dtype))
    if measured is not None:
        return measured
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return default(m, n, k, dtype, processors)


@lru_cache(maxsize=4096)
def default(m: int, n: int, k: int, dtype: torch.dtype, processors: int = PROCESSORS) -> Config:
    """By shape alone. float32 takes the kernel that rounds nothing, whatever the batch."""
    config = FLOAT32
    if dtype != torch.float32:
        config = _half_precision(m)
    if config.kind == "dense":
        return config
    # Thread blocks of an unsplit launch: both quotients are rounded up.
    programs = -(-n // config.block_n) * -(-m // config.block_m)
    split = 1
    # Twice as many parts while processors idle, a part keeps 4 steps, and the sums stay small: they
    # are written and read again, so that many rows of x allow fewer parts.
    while (
        programs * split < 2 * processors
        and k >= 8 * split * config.block_k
        and 2 * split * m <= 256
    ):
        split *= 2
    return replace(config, split=split)


def _half_precision(m: int) -> Config:
    for limit, config in DEFAULTS:
        if m <= limit:
            return config
    return DENSE
