"""Products with 33 rows and more on Hopper: weights in registers, x in shared memory, wgmma.

What the kernel does stands in wide_rows.cu. Here are its tile sizes, its grid and its launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda import launch as launcher
from qbench.kernels.gpu.cuda.layout import CudaPlanes

NAME = "wide_rows"
SOURCE = "wide_rows.cu"
STAGES = ("X_STAGES", "W_STAGES")
FEWEST_ROWS = 33
REGISTERS = 65536  # of a multiprocessor
SHARED_BYTES = 227 << 10  # of a block, at most; a multiprocessor has 1 KiB more
RESERVED_BYTES = 1 << 10  # of each block, for the system
PRODUCER_REGISTERS = 24  # of a thread that only copies
INPUTS_OF_A_TILE = 64
SWIZZLE_BYTES = 1024  # tiles of x begin at multiples of it


@dataclass(frozen=True)
class Config:
    """How the work is divided (see wide_rows.cu).

    rows: of x that one block takes: 64, 128, 192 or 256. out_groups: warpgroups of 64 outputs each.
    share: blocks that read each tile of x together. splits: blocks that divide the inputs.
    blocks: of one multiprocessor.
    """

    rows: int = 256
    out_groups: int = 2
    share: int = 2
    splits: int = 1
    blocks: int = 1

    @property
    def outputs(self) -> int:
        """Outputs that one block computes."""
        return 64 * self.out_groups

    @property
    def threads(self) -> int:
        """Threads of a block: the consumers' warpgroups and one that copies."""
        return 128 * (self.out_groups + 1)


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why this kernel does not compute such a product, or None."""
    if architecture != 90:
        return f"wide_rows is written for compute capability 9.0 (Hopper), not {architecture}"
    if rows < FEWEST_ROWS:
        return f"wide_rows serves {FEWEST_ROWS} rows and more, not {rows}"
    return None


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """The configuration of the least estimated time."""
    candidates = list(configurations(rows, planes))
    return min(candidates, key=lambda config: _estimate(config, rows, planes, multiprocessors))


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth timing."""
    sizes = [n for n in (64, 128, 192, 256) if n < 2 * rows or n == 64]
    for size in sizes[-2:]:
        for share, splits in ((2, 1), (2, 2), (2, 4), (1, 1), (4, 1)):
            if splits <= planes.chunks:
                yield Config(size, 2, share, splits)


def macros(planes: CudaPlanes, dtype: torch.dtype, config: Config) -> dict[str, int]:
    """What the source is compiled with."""
    rings = zip(STAGES, stages(planes, config), strict=True)
    return planes.macros(dtype) | dict(rings) | _of(config)


def _of(config: Config) -> dict[str, int]:
    """The macros that a configuration alone decides."""
    sizes = {name.upper(): value for name, value in asdict(config).items()}
    return {**sizes, "CONSUMER_REGISTERS": consumer_registers(config)}


def consumer_registers(config: Config) -> int:
    """Of a thread that computes: what those of a block share when the copying ones give theirs."""
    entry = REGISTERS // (config.blocks * config.threads) // 8 * 8
    groups = config.out_groups
    return min(240, (entry * (groups + 1) - PRODUCER_REGISTERS) // groups // 8 * 8)


def stages(planes: CudaPlanes, config: Config) -> tuple[int, int]:
    """How many tiles of x and chunks of words the rings hold: what the shared memory allows."""
    left = _budget(config) - SWIZZLE_BYTES - 512  # barriers
    x_bytes = config.rows * INPUTS_OF_A_TILE * 2
    w_bytes = chunk_bytes(planes, config)
    w_stages = 3 if left - 3 * w_bytes >= 4 * x_bytes else 2
    return min(12, (left - w_stages * w_bytes) // x_bytes), w_stages


def chunk_bytes(planes: CudaPlanes, config: Config) -> int:
    """Words and parameters of 256 inputs and a block's outputs."""
    size = planes.group_size
    slots = 1 if size % 256 == 0 else 256 // size if size < 128 else 2
    parameters = planes.params[0, 0].numel() * planes.params.element_size()
    return 4 * config.out_groups * (planes.bits * 512 + slots * parameters)


def shared_bytes(planes: CudaPlanes, config: Config) -> int:
    """Dynamic shared memory of a block: the rings or the sums, and the barriers."""
    x_stages, w_stages = stages(planes, config)
    rings = x_stages * config.rows * INPUTS_OF_A_TILE * 2 + w_stages * chunk_bytes(planes, config)
    sums = config.rows * (config.outputs + 4) * 4
    return max(rings, sums) + SWIZZLE_BYTES + 16 * (x_stages + w_stages)


def _budget(config: Config) -> int:
    return (SHARED_BYTES + RESERVED_BYTES) // config.blocks - RESERVED_BYTES


@dataclass(frozen=True)
class Prepared:
    """x as tiles of 64 inputs in half precision, and what y is multiplied with, row by row."""

    tiles: Tensor
    unscale: Tensor
    padded_rows: int


def prepare(x: Tensor, planes: CudaPlanes, config: Config) -> Prepared:
    """Write the tiles of x (rows, in) on the current stream; rows that pad stay unwritten."""
    rows, columns = x.shape
    padded = -(-rows // config.rows) * config.rows
    inputs = planes.chunks * 256
    tiles = x.new_empty((inputs // INPUTS_OF_A_TILE, padded, INPUTS_OF_A_TILE), dtype=torch.half)
    unscale = x.new_empty(rows, dtype=torch.float32)
    aligned = columns % 8 == 0 and x.data_ptr() % 16 == 0
    threads = min(1024, -(-inputs // 16 // 32) * 32)
    function = _function("prepare", planes, x.dtype, config, x.get_device())
    arguments = (x, tiles, unscale, columns, planes.chunks, padded, int(aligned))
    function.launch((rows, 1, 1), (threads, 1, 1), arguments, dependent=True)
    return Prepared(tiles, unscale, padded)


def launch(x: Tensor, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config) -> None:
    """y (rows, out) = x (rows, in) W^T + bias, on the current stream."""
    multiply(prepare(x, planes, config), planes, bias, y, config)


def multiply(
    prepared: Prepared, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config
) -> None:
    """The product with an x that was prepared for a configuration with as many rows."""
    rows, outputs = y.shape
    blocks = -(-outputs // (config.outputs * config.share)) * config.share * config.splits
    function = _function("multiply_wide", planes, y.dtype, config, y.get_device())
    arguments = (
        prepared.tiles,
        prepared.unscale,
        planes.words,
        planes.params,
        bias,
        y,
        rows,
        outputs,
        planes.chunks,
        planes.groups,
        prepared.padded_rows,
    )
    function.launch(
        (blocks, prepared.padded_rows // config.rows, 1),
        (config.threads, 1, 1),
        arguments,
        shared_bytes(planes, config),
        dependent=True,
    )


def _function(
    name: str, planes: CudaPlanes, dtype: torch.dtype, config: Config, device: int
) -> launcher.Function:
    kind = (*planes.macros(dtype).items(), *zip(STAGES, stages(planes, config), strict=True))
    return _compiled(name, kind, config, device)


@cache
def _compiled(
    name: str, kind: tuple[tuple[str, int], ...], config: Config, device: int
) -> launcher.Function:
    return launcher.function(SOURCE, name, dict(kind) | _of(config), device)


def _estimate(config: Config, rows: int, planes: CudaPlanes, multiprocessors: int) -> float:
    """Cycles: waves of blocks, each bound by the matrix units or by its dequantization."""
    blocks = -(-planes.tiles * 16 // (config.outputs * config.share)) * config.share
    blocks *= -(-rows // config.rows) * config.splits
    waves = -(-blocks // multiprocessors)
    chunks = -(-planes.chunks // config.splits)
    matrix = 8 * config.rows  # cycles of a warpgroup's 64 outputs and a chunk of 256 inputs
    dequantize = 128 * (planes.bits + 1)
    work = chunks * config.out_groups * max(matrix, dequantize)
    finish = 4 * config.rows * config.out_groups
    return float(waves * (work + finish + 3000) + 1000 * config.splits)
