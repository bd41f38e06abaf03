"""y = x W^T for 5 to some hundred rows of x: weights in half precision, made in registers.

Each weight is made once for up to 64 rows of x (`half_rows.cu`, `weights.cuh`), and multiplied by
mma.m16n8k16 with sums in float32. Weights are rounded to the dtype of x, those of tables that are
added twice; that is the error of a product with the dequantized weight, about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda import launch as launching
from qbench.kernels.gpu.cuda.layout import CHUNK, TILE, CudaPlanes

NAME = "half_rows"
MOST_ROWS = 64  # of a block
SPAN_ROWS = 16  # of a block whose warps go in spans: as much of x as shared memory has room for
MULTIPROCESSORS = 132  # of an H100 or H200, which configurations are ranked for
X_ROW_BYTES = 2 * (CHUNK + 16)  # as in the source, with what keeps banks apart
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
LEAST_SHARED_BYTES = 99 << 10  # of the other architectures


@dataclass(frozen=True)
class Config:
    """How the work is cut; see half_rows.cu.

    rows: of x, of a block. tiles: of 16 outputs, of a warp. across, along: warps of a block, beside
    each other along the outputs and along the inputs. split: blocks that share the inputs.
    stages: batches in shared memory. blocks: that should fit a multiprocessor. span: 0 where all
    warps meet at each batch, else batches of x that arrive together, at least stages - 2.
    """

    rows: int = 16
    tiles: int = 1
    across: int = 8
    along: int = 1
    split: int = 1
    stages: int = 4
    blocks: int = 2
    span: int = 0

    @property
    def outputs(self) -> int:
        """Outputs of a block."""
        return TILE * self.tiles * self.across

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.across * self.along


def serves(planes: CudaPlanes, rows: int, architecture: int) -> str | None:
    """Why this kernel does not multiply so many rows on this architecture (80, 90, ..), or None."""
    if architecture < 80:
        return f"it needs compute capability 8.0, not {architecture / 10}"
    if rows > 65535 * 8:
        return f"{rows} rows are more than a grid has blocks for"
    if not _sensible(rows, planes):
        return f"a block has no room for {planes.bits} bits in groups of {planes.group_size}"
    return None


def default(rows: int, planes: CudaPlanes, multiprocessors: int) -> Config:
    """What serves well without measuring."""
    return min(_sensible(rows, planes), key=lambda c: _cost(c, rows, planes, multiprocessors))


def configurations(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """What is worth measuring: the best of each way to fill a multiprocessor."""

    def cost(config: Config) -> float:
        return _cost(config, rows, planes, MULTIPROCESSORS)

    best: dict[tuple[int, ...], Config] = {}
    for config in sorted(_sensible(rows, planes), key=cost):
        best.setdefault((config.tiles, config.threads, config.along, config.blocks), config)
    # Other kernels are faster at few rows and at many.
    count = 6 if 4 < rows <= MOST_ROWS else 2
    yield from islice(best.values(), count)
    if 4 < rows <= SPAN_ROWS:
        yield from _in_spans(rows, planes)


def launch(x: Tensor, planes: CudaPlanes, bias: Tensor | None, y: Tensor, config: Config) -> None:
    """y = x W^T + bias, on torch's current stream.

    x (rows, in) float16 or bfloat16, y (rows, out) of the same dtype: contiguous. bias float32
    (out,) or None.
    """
    rows, columns = x.shape
    out = planes.shape[0]

    def plan() -> tuple[launching.Function, int]:
        kernel = _function(planes.macros(x.dtype), config, x.get_device())
        return kernel, shared_bytes(planes, config)

    function, shared = planes.kept((NAME, x.dtype, config), plan)
    grid = (-(-out // config.outputs), -(-rows // config.rows), config.split)
    arguments = (planes.words, planes.params, x, bias, y, out, columns, rows)
    function.launch(grid, (config.threads, 1, 1), arguments, shared, dependent=True)


def shared_bytes(planes: CudaPlanes, config: Config) -> int:
    """Shared memory of a block: all stages, or in the end the sums."""
    tables = planes.groups_of_chunk  # of a row in a chunk
    words = planes.bits * 512
    batches = 2 * config.span if config.span else config.stages
    x = batches * config.along * config.rows * X_ROW_BYTES
    tiles = config.across * config.along * config.tiles
    stage = tiles * (words + tables * planes.group_bytes)
    shared_tables = tiles * 16 * tables * 4 * _table_row(planes)
    shared_tables *= 1 if config.span else 2  # batches
    sums = 4 * config.along * config.rows * (config.outputs + 4)
    return max(x + config.stages * stage + shared_tables, sums)


def block_bytes(architecture: int) -> int:
    """The most shared memory that a block may have on an architecture (80, 90, ..)."""
    return SHARED_BYTES.get(architecture, LEAST_SHARED_BYTES)


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
        "SPAN": config.span,
    }


def _function(formats: dict[str, int], config: Config, device: int) -> launching.Function:
    return _compiled(tuple(formats.items()), config, device)


@cache
def _compiled(
    formats: tuple[tuple[str, int], ...], config: Config, device: int
) -> launching.Function:
    names = dict(formats) | macros(config)
    return launching.function("half_rows.cu", "half_rows", names, device)


def _table_row(planes: CudaPlanes) -> int:
    """Words of a table in shared memory: TABLE_ROW of weights.cuh."""
    if planes.uniform and planes.bits >= 4:
        return 4
    octets = 0 if planes.group_size in (32, 64) else (0, 0, 0, 1, 0, 1, 2, 1, 2)[planes.bits]
    registers = 4 * octets + 2 * -(-(planes.bits - 3 * octets) // 2)
    return 2 if registers == 2 else -(-registers // 4) * 4


def _sensible(rows: int, planes: CudaPlanes) -> list[Config]:
    """Ways to cut the work that fit the GPU.

    With fewer rows to a block where many bits and small groups leave no room for more.
    """
    height = min(-(-rows // 8) * 8, MOST_ROWS)
    configs = list(_of_height(height, planes))
    while not configs and height > 8:
        height = -(-height // 16) * 8
        configs = list(_of_height(height, planes))
    return configs


def _of_height(height: int, planes: CudaPlanes) -> Iterator[Config]:
    """Those whose blocks have so many rows of x."""
    clusters, shared = _limits(planes.words.device)
    for tiles, across, along, split in product((1, 2), (8, 4, 2), (1, 2, 4, 8), (1, 2, 4)):
        warps = across * along
        if warps not in (4, 8, 16) or (height % warps and warps % height):
            continue
        # In these cases there would be more registers than a multiprocessor has.
        if planes.bits > 4 and (tiles == 2 or warps == 16):
            continue
        if warps == 16 and (tiles == 2 or height > 32):
            continue
        if (split > 1 and not clusters) or along * split > max(planes.chunks, 2):
            continue
        for stages in (4, 3):
            config = Config(height, tiles, across, along, split, stages, 1)
            used = shared_bytes(planes, config) + 1024
            if used <= shared:
                twice = warps == 8 and 2 * used <= shared and tiles == 1 and height <= 32
                yield replace(config, blocks=2 if twice else 1)
                break


def _in_spans(rows: int, planes: CudaPlanes) -> Iterator[Config]:
    """Ways in which warps have more to do between two waits for each other.

    At 8 rows and 3 bits a tile and chunk takes 330 instructions of a warp with two tiles, 390 of
    one with one tile: 16 warps with two each are what registers and shared memory hold. Clusters
    have two blocks at most: 32 of four do not fit a GPU of 132 multiprocessors at once.
    """
    height = min(-(-rows // 8) * 8, SPAN_ROWS)
    clusters, shared = _limits(planes.words.device)
    ways = ((2, 4, 4, 1), (2, 4, 3, 1), (1, 4, 4, 1), (1, 8, 2, 1), (1, 4, 2, 2))
    if planes.bits > 4:
        return
    for tiles, across, along, blocks in ways:
        if tiles == 2 and along * planes.bits > (12 if height == 8 else 11):
            continue  # more registers than there are
        whole = Config(height, tiles, across, along, blocks=blocks)
        fits = 2 * -(-planes.shape[0] // whole.outputs) <= MULTIPROCESSORS * blocks
        split = 2 if clusters and fits and 2 * along <= planes.chunks else 1
        for stages, span in ((4, 2), (3, 2), (3, 1)):
            config = replace(whole, split=split, stages=stages, span=span)
            if blocks * (shared_bytes(planes, config) + 1024) <= shared + 1024:
                yield config
                break


def _cost(config: Config, rows: int, planes: CudaPlanes, multiprocessors: int) -> float:
    """About how many clock cycles a product takes, from measurements on an H200."""
    blocks = -(-planes.shape[0] // config.outputs) * -(-rows // config.rows) * config.split
    resident = min(config.blocks, -(-blocks // multiprocessors))
    waves = -(-blocks // (multiprocessors * resident))
    batches = -(-planes.chunks // (config.split * config.along))
    # A scheduler of the multiprocessor works through its warps' tiles; a batch ends with a barrier.
    tiles = max(resident * config.across * config.along / 4, 1) * config.tiles
    cycles = waves * (3000 + batches * (480 + tiles * (600 + 12 * config.rows)))
    # Clusters of 4 leave multiprocessors idle, which come in groups of 16 and 18.
    return cycles * {1: 1.0, 2: 1.03, 4: 1.5}[config.split]


@cache
def _limits(device: torch.device) -> tuple[bool, int]:
    """Whether the GPU has clusters, and bytes of shared memory of a block."""
    if device.type != "cuda":
        return True, SHARED_BYTES[90]
    major, minor = torch.cuda.get_device_capability(device)
    return major in (9, 10), block_bytes(10 * major + minor)
