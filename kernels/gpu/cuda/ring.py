"""What `bit_serial` and `byte_rows` have in common: weights come by the stages of ring.cuh."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.kernels.gpu.cuda.launch import Function
from qbench.kernels.gpu.cuda.layout import CudaPlanes

SHARED_BYTES = 99 << 10  # of a thread block, on the smallest of the GPUs that are served


@dataclass(frozen=True)
class Config:
    """How a product is divided.

    warps: of a thread block; they share the inputs. tiles: of 16 outputs, of a thread block.
    stages: chunks of 256 inputs that a warp has in shared memory, of which all but one are on their
    way, at least 2.
    """

    warps: int
    tiles: int
    stages: int

    def macros(self) -> dict[str, int]:
        """What a source is compiled with, beside the weight's macros."""
        return {"WARPS": self.warps, "TILES": self.tiles, "STAGES": self.stages}


def tile_bytes(planes: CudaPlanes) -> int:
    """What a chunk of 256 inputs has of a tile of 16 outputs: words and parameters."""
    words = planes.bits * 512
    if planes.group_size == 0:  # its only parameters do not come by the stages
        return words
    return words + planes.groups_of_chunk * planes.group_bytes


def shared_bytes(planes: CudaPlanes, config: Config) -> int:
    """Dynamic shared memory of a thread block: the stages of all warps."""
    return config.warps * config.stages * config.tiles * tile_bytes(planes)


def block_limit(planes: CudaPlanes) -> int:
    """Shared memory of a thread block that is worth timing: two of them on a multiprocessor."""
    if not planes.words.is_cuda:
        return SHARED_BYTES
    facts = torch.cuda.get_device_properties(planes.words.device)
    most: int = getattr(facts, "shared_memory_per_block_optin", SHARED_BYTES)
    return min(most, max(SHARED_BYTES, most // 2))


def fitting(config: Config, planes: CudaPlanes) -> Config:
    """This one; where its stages do not fit every GPU, fewer warps with one tile and two stages."""
    while shared_bytes(planes, config) > SHARED_BYTES:
        config = Config(config.warps // 2, 1, 2)
    return config


def useful(sizes: Iterable[tuple[int, int, int]], planes: CudaPlanes) -> Iterator[Config]:
    """Those of (warps, tiles, stages) that fit, and in which no stage stays empty."""
    limit = block_limit(planes)
    for warps, tiles, stages in sizes:
        config = Config(warps, tiles, stages)
        filled = (stages - 2) * warps < planes.chunks
        if filled and shared_bytes(planes, config) <= limit:
            yield config


def launch(
    key: Hashable,
    function: Callable[[], Function],
    x_parts: tuple[Tensor, Tensor],
    planes: CudaPlanes,
    bias: Tensor | None,
    y: Tensor,
    config: Config,
    more: tuple[int, ...] = (),
) -> None:
    """Write a product to y (rows, out), contiguous, on the current stream.

    key: what `function`, which gives the compiled one, depends on beside the weight. x_parts: x as
    it was prepared. bias float32 (out,) contiguous, or None. more: arguments of this function after
    those that all have.
    """

    def plan() -> tuple[Function, int]:
        return function(), shared_bytes(planes, config)

    kernel, shared = planes.kept(key, plan)
    sizes = (y.shape[1], planes.chunks, planes.groups)
    kernel.launch(
        (-(-planes.tiles // config.tiles), 1, 1),
        (32 * config.warps, 1, 1),
        (planes.words, planes.params, *x_parts, bias, y, *sizes, *more),
        shared,
        dependent=True,
    )
