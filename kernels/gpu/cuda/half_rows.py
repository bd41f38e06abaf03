"""y = x W^T for 5 to some hundred rows of x: weights in half precision, made in registers.

Each weight is made once for up to 64 rows of x (`half_rows.cu`, `weights.cuh`), and multiplied by
mma.m16n8k16 with sums in float32. Weights are rounded to the dtype of x, those of tables that are
added twice; that is the error of a product with the dequantized weight, about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda import launch as launching
from qbench.kernels.gpu.cuda.layout import CHUNK, TILE, CudaPlanes

NAME = "half_rows"
MOST_ROWS = 64  # of a block
X_ROW_BYTES = 2 * (CHUNK + 16)  # as in the source, with what keeps banks apart
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass(frozen=True)
class Config:
    """How the work is cut; see half_rows.cu.

    rows: of x, of a block. tiles: of 16 outputs, of a warp. across, along: warps of a block, beside
    each other along the outputs and along the inputs. split: blocks that share the inputs.
    stages: batches in shared memory. blocks: that should fit a multiprocessor.
    """

    rows: int = 16
    tiles: int = 1
    across: int = 8
    along: int = 1
    split: int = 1
    stages: int = 4
    blocks: int = 2

    @property
    def outputs(self) -> int:
        """Outputs of a block."""
        return TILE * self.tiles * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.across * self.along

    def shared_bytes(self, planes: CudaPlanes) -> int:
        """Shared memory of a block: all stages, or in the end the sums."""
        words = planes.bits * 512
        tables = _tables(planes.group_size) * 8 * planes.params.shape[3] * 2
        tables *= planes.params.element_size()
        x = self.along * self.rows * X_ROW_BYTES
        stage = x + self.across * self.along * self.tiles * (words + tables)
        shared_tables = self.across * self.along * self.tiles * 16 * _tables(planes.group_size)
        shared_tables *= 4 * _table_row(planes)
        sums = 4 * self.along * self.rows * (self.outputs + 4)
        return max(self.stages * stage + shared_tables, sums)


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why this kernel does not multiply so many rows on this architecture (80, 90, ..), or None."""
    if architecture < 80:
        return f"it needs compute capability 8.0, not {architecture / 10}"
    if rows > 65535 * 8:
        return f"{rows} rows are more than a grid has blocks for"
    return None


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """What serves well without measuring."""
    found = min(_sensible(rows, planes), key=lambda c: _cost(c, rows, planes, multiprocessors))
    return found


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth measuring, at most a dozen."""
    ranked = sorted(_sensible(rows, planes), key=lambda c: _cost(c, rows, planes, 132))
    yield from ranked[:12]


def launch(x: Tensor, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config) -> None:
    """y = x W^T + bias, on torch's current stream.

    x (rows, in) float16 or bfloat16, y (rows, out) of the same dtype: contiguous. bias float32
    (out,) or None.
    """
    rows, columns = x.shape
    out = planes.shape[0]
    function = _function(planes.macros(x.dtype), config, x.get_device())
    grid = (-(-out // config.outputs), -(-rows // config.rows), config.split)
    arguments = (planes.words, planes.params, x, bias, y, out, columns, rows)
    shared = config.shared_bytes(planes)
    function.launch(grid, (config.threads, 1, 1), arguments, shared, dependent=True)


def macros(config: Config) -> dict[str, int]:
    """What the source is compiled with, beside the format's macros."""
    return {
        "ROWS": config.rows,
        "TILES": config.tiles,
        "ACROSS": config.across,
        "ALONG": config.along,
        "SPLIT": config.split,
        "STAGES": config.stages,
        "BLOCKS": config.blocks,
    }


def _function(formats: dict[str, int], config: Config, device: int) -> launching.Function:
    return _compiled(tuple(formats.items()), config, device)


@cache
def _compiled(
    formats: tuple[tuple[str, int], ...], config: Config, device: int
) -> launching.Function:
    names = dict(formats) | macros(config)
    return launching.function("half_rows.cu", "half_rows", names, device)


def _tables(group_size: int) -> int:
    """Tables of a row in a chunk."""
    if group_size in (32, 64):
        return CHUNK // group_size
    return 2 if group_size % CHUNK else 1


def _table_row(planes: CudaPlanes) -> int:
    """Words of a table in shared memory: TABLE_ROW of weights.cuh."""
    if planes.uniform and planes.bits >= 4:
        return 4
    octets = 0 if planes.group_size in (32, 64) else (0, 0, 0, 1, 0, 1, 2, 1, 2)[planes.bits]
    registers = 4 * octets + 2 * -(-(planes.bits - 3 * octets) // 2)
    return 2 if registers == 2 else -(-registers // 4) * 4


def _sensible(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """Ways to cut the work that fit the GPU."""
    height = min(-(-rows // 8) * 8, MOST_ROWS)
    tiles = 1 if height <= 16 else 2
    clusters, shared = _limits(planes.words.device)
    for across, along in ((8, 1), (4, 2), (4, 1), (2, 4)):
        for split in (1, 2, 4, 8):
            base = Config(height, tiles, across, along, split, 4, 1)
            if (split * along > planes.chunks and split > 1) or (split > 1 and not clusters):
                continue
            for stages in (4, 3, 2):
                config = replace(base, stages=stages)
                used = config.shared_bytes(planes) + 1024
                if used <= shared:
                    fitting = 2 if height <= 32 and 2 * used <= shared else 1
                    yield replace(config, blocks=fitting)
                    break


def _cost(config: Config, rows: int, planes: CudaPlanes, multiprocessors: int) -> float:
    """Batches that a multiprocessor goes through one after the other, and what a block costs."""
    blocks = -(-planes.shape[0] // config.outputs) * -(-rows // config.rows) * config.split
    waves = -(-blocks // (multiprocessors * config.blocks))
    chunks = -(-planes.chunks // config.split)
    batches = -(-chunks // config.along)
    # Warps that stand beside each other on a multiprocessor share it; below 8 it is not busy.
    busy = max(config.blocks * config.across * config.along * config.tiles, 8)
    return waves * (batches * busy + 24) + 4 * (config.split > 1) + config.along


@cache
def _limits(device: torch.device) -> tuple[bool, int]:
    """Whether the GPU has clusters, and bytes of shared memory of a block."""
    if device.type != "cuda":
        return True, SHARED_BYTES[90]
    major, minor = torch.cuda.get_device_capability(device)
    architecture = 10 * major + minor
    return major in (9, 10), SHARED_BYTES.get(architecture, 99 << 10)
