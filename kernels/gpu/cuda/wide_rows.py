"""Products with 17 rows and more on Hopper: weights in registers, x in shared memory, wgmma.

What the kernel does stands in wide_rows.cu. Here are its tile sizes, its grid and its launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import launch as launcher
from qbench.kernels.gpu.cuda.layout import CudaPlanes

NAME = "wide_rows"
SOURCE = "wide_rows.cu"
STAGES = ("X_STAGES", "W_STAGES")
FEWEST_ROWS = 17
ROWS = (32, 64, 128, 256)
REGISTERS = 65536  # of a multiprocessor
SHARED_BYTES = 227 << 10  # of a block, at most; a multiprocessor has 1 KiB more
RESERVED_BYTES = 1 << 10  # of each block, for the system
PRODUCER_REGISTERS = 24  # of a thread that only copies
INPUTS_OF_A_TILE = 64
TILES_OF_A_CHUNK = 4
LEAST_X_STAGES = 4  # half a chunk is read while the half before it may still be
MOST_X_STAGES = 16
SWIZZLE_BYTES = 1024  # tiles of x begin at multiples of it


@dataclass(frozen=True)
class Config:
    """How the work is divided (see wide_rows.cu).

    rows: of x that one block takes: 32, 64, 128 or 256; 192 compiles, too, and is in no list of
    `configurations`. out_groups: warpgroups that divide its outputs, 64 each. share: blocks that
    read each tile of x together. splits: blocks that divide the inputs. blocks: of one
    multiprocessor. k_groups: warpgroups that divide a block's inputs.
    """

    rows: int = 256
    out_groups: int = 2
    share: int = 2
    splits: int = 1
    blocks: int = 1
    k_groups: int = 1

    @property
    def groups(self) -> int:
        """Warpgroups of a block that compute."""
        return self.out_groups * self.k_groups

    @property
    def outputs(self) -> int:
        """Outputs that one block computes."""
        return 64 * self.out_groups

    @property
    def threads(self) -> int:
        """Threads of a block: the consumers' warpgroups and one that copies."""
        return 128 * (self.groups + 1)


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why this kernel does not compute such a product, or None."""
    if architecture != 90:
        return f"wide_rows is written for compute capability 9.0 (Hopper), not {architecture}"
    if rows < FEWEST_ROWS:
        return f"wide_rows serves {FEWEST_ROWS} rows and more, not {rows}"
    if not planes.in_half:
        return "wide_rows makes weights in half precision, which does not hold these"
    return None


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """The configuration of the least estimated time."""
    candidates = list(configurations(rows, planes))
    return min(candidates, key=lambda config: _estimate(config, rows, planes, multiprocessors))


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth timing. Clusters have two blocks at most: larger ones leave GPCs unfilled."""
    size = next((n for n in ROWS if n >= rows), ROWS[-1])
    few = [Config(size, 2, 1, 1), Config(size, 2, 1, 2), Config(size, 1, 1, 2, 1, 2)]
    candidates = {
        32: [*few, Config(32, 2, 1, 2, 1, 2)],
        64: [*few, Config(64, 2, 1, 2, 1, 2)],
        128: few,
        256: [Config(256), Config(256, 2, 1, 1), Config(256, 2, 1, 2), Config(128, 1, 1, 1, 1, 2)],
    }[size]
    for config in candidates:
        if config.splits <= planes.chunks and has_room(planes, config):
            yield config
    if size == ROWS[-1]:  # fits whatever the bits and groups
        yield Config(128, 2, 1, 1)


def _of_planes(planes: CudaPlanes, dtype: torch.dtype) -> dict[str, int]:
    """The macros that the weight and x decide; weights become float16 whatever x is."""
    return planes.macros(torch.float16) | {"X_BF16": int(dtype == torch.bfloat16)}


def _of(config: Config) -> dict[str, int]:
    """The macros that a configuration alone decides."""
    sizes = {name.upper(): value for name, value in asdict(config).items()}
    return {**sizes, "CONSUMER_REGISTERS": consumer_registers(config)}


def consumer_registers(config: Config) -> int:
    """Of a thread that computes: what those of a block share when the copying ones give theirs."""
    entry = REGISTERS // (config.blocks * config.threads) // 8 * 8
    left = entry * (config.groups + 1) - PRODUCER_REGISTERS
    return min(240, left // config.groups // 8 * 8)


def stages(planes: CudaPlanes, config: Config) -> tuple[int, int]:
    """How many tiles of x and chunks of words the rings hold: what the shared memory allows.

    A stage belongs to one of the warpgroups that divide the inputs: by the parity of its turn that
    one knows of the turn before, which it has read itself.
    """
    left = _budget(config) - SWIZZLE_BYTES - 512  # barriers
    x_bytes = config.rows * INPUTS_OF_A_TILE * 2
    w_bytes = chunk_bytes(planes, config)
    x_unit = TILES_OF_A_CHUNK * config.k_groups if config.k_groups > 1 else 1
    w_stages = next(n for n in (4, 3, 2) if n % config.k_groups == 0)
    while (
        w_stages > max(2, config.k_groups)
        and left - w_stages * w_bytes < TILES_OF_A_CHUNK * x_bytes
    ):
        w_stages -= config.k_groups
    x_stages = min(MOST_X_STAGES, (left - w_stages * w_bytes) // x_bytes)
    return x_stages // x_unit * x_unit, w_stages


def has_room(planes: CudaPlanes, config: Config) -> bool:
    """Whether a block has shared memory enough."""
    return stages(planes, config)[0] >= LEAST_X_STAGES


def chunk_bytes(planes: CudaPlanes, config: Config) -> int:
    """Words and parameters of 256 inputs and a block's outputs."""
    tile = planes.bits * 512 + planes.groups_of_chunk * planes.group_bytes
    return 4 * config.out_groups * tile


def shared_bytes(planes: CudaPlanes, config: Config) -> int:
    """Dynamic shared memory of a block: the rings or the sums, and the barriers."""
    x_stages, w_stages = stages(planes, config)
    rings = x_stages * config.rows * INPUTS_OF_A_TILE * 2 + w_stages * chunk_bytes(planes, config)
    sums = config.rows * (config.outputs + 4) * 4
    return max(rings, config.k_groups * sums) + SWIZZLE_BYTES + 16 * (x_stages + w_stages)


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
    threads = min(512, -(-inputs // 16 // 32) * 32)
    function = _function("prepare", planes, x.dtype, config, x.get_device())
    arguments = (x, tiles, unscale, columns, planes.chunks, padded, int(aligned))
    function.launch((rows, 1, 1), (threads, 1, 1), arguments, dependent=True)
    return Prepared(tiles, unscale, padded)


def launch(x: Tensor, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config) -> None:
    """y (rows, out) = x (rows, in) W^T + bias, on the current stream.

    x float16 or bfloat16, y of the same dtype, both contiguous. The rest is as in `multiply`.
    """
    multiply(prepare(x, planes, config), planes, bias, y, config)


def multiply(
    prepared: Prepared, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config
) -> None:
    """The product with an x that was prepared for a configuration with as many rows.

    bias float32 (out,) contiguous, or None. y (rows, out), contiguous, is written, on the current
    stream. ConfigError where shared memory has no room for this configuration.
    """
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
        planes.kept((NAME, config), lambda: shared_bytes(planes, config)),
        dependent=True,
    )


def _function(
    name: str, planes: CudaPlanes, dtype: torch.dtype, config: Config, device: int
) -> launcher.Function:
    def compiled() -> launcher.Function:
        rings = stages(planes, config)
        if rings[0] < LEAST_X_STAGES:
            raise ConfigError(
                f"wide_rows has no room for {config} with {planes.bits} bits in groups of "
                f"{planes.group_size}; take one with fewer rows or k_groups"
            )
        kind = (*_of_planes(planes, dtype).items(), *zip(STAGES, rings, strict=True))
        return _compiled(name, kind, config, device)

    return planes.kept((NAME, name, dtype, config), compiled)


@cache
def _compiled(
    name: str, kind: tuple[tuple[str, int], ...], config: Config, device: int
) -> launcher.Function:
    return launcher.function(SOURCE, name, dict(kind) | _of(config), device)


def _estimate(config: Config, rows: int, planes: CudaPlanes, multiprocessors: int) -> float:
    """Cycles of all waves of blocks.

    The matrix units and the other ones hardly overlap: both use the registers' ports. A sole warp
    of a scheduler waits for its own results.
    """
    blocks = -(-planes.shape[0] // (config.outputs * config.share)) * config.share
    blocks *= -(-rows // config.rows) * config.splits
    waves = -(-blocks // multiprocessors)
    matrix = 8 * config.rows  # of a warpgroup's 64 outputs and a chunk of 256 inputs
    dequantize = (250 + 100 * planes.bits) * (1.5 if config.groups == 1 else 1.0)
    chunks = -(-planes.chunks // config.splits)
    work = chunks * config.out_groups * (matrix + dequantize)
    return waves * (work + 8 * config.rows * config.out_groups + 6000 + 1500 * config.splits)
