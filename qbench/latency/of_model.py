"""What a saved model's products and tokens cost on this device: for the record of its cell.

The products are those of the model's own layers, each layer shape once, with the kernel that serves
it here, in turns with torch's dense product. So is the model as a whole, packed and dense.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from qbench.checkpoint.packed_linear import packed_layers
from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.kernels.dispatch import request
from qbench.kernels.registry import choose
from qbench.latency import timing
from qbench.latency.candidates import dense_candidate, kernel_candidate, random_matrix
from qbench.latency.end_to_end import Speed, Variant, once, peak_of, speed_of
from qbench.latency.timing import Candidate, Shape
from qbench.models.source import torch_dtype
from qbench.quantization import load
from qbench.records import Decoding, Product, Spread

ROWS = (1, 16, 512)  # of x: one token, a small batch, a prompt
PROMPT = 64  # tokens read, end to end
TOKENS = 16  # and written
SECONDS = 0.5  # that timing one product may take, and SECONDS_OF_MODEL one model, end to end
SECONDS_OF_MODEL = 5.0
ROUNDS = (3, 30)  # of a product, the least and the most
REPEATS = (1, 5)  # of a model
BURST = 4  # products that follow each other in a round


@dataclass(frozen=True)
class Alike:
    """Layers of one shape and format, whose products cost the same.

    key: says what they have in common. weight: of the first. count: how many there are.
    """

    key: str
    weight: WeightFormat
    count: int


def alike(model: nn.Module) -> list[Alike]:
    """The quantized layers of a packed model, sorted out by what their products cost."""
    firsts: dict[str, WeightFormat] = {}
    counts: Counter[str] = Counter()
    for _, layer in packed_layers(model):
        # The shapes, too: of binary weights they alone say how many planes there are.
        parts = [[str(part.dtype), list(part.shape)] for part in layer.tensors().values()]
        key = json.dumps([layer.call, parts])
        firsts.setdefault(key, layer.quantized())
        counts[key] += 1
    return [Alike(key, weight, counts[key]) for key, weight in firsts.items()]


def time_product(layers: Alike, rows: int, dtype: str, device: str) -> Product:
    """The product of x (rows, in) with one of these layers, in turns with a dense one.

    dtype: of x, and of the dense weight. QbenchError where no kernel serves it, or one is wrong.
    """
    out, columns = layers.weight.shape
    shape = Shape(out, columns, rows)
    x = random_matrix(rows, columns, 1, device).to(torch_dtype(dtype))
    kernel = choose(request(x, layers.weight))
    bits = round(getattr(layers.weight, "bits", 0))
    dense = dense_candidate(layers.weight.dequantize(), x)
    candidates = [dense, kernel_candidate(kernel, layers.weight, x, bits)]
    if device == "cpu":
        timed = timing.time_interleaved(shape, candidates, _rounds(candidates), BURST)
    else:
        from qbench.latency.gpu import graph_clock

        timed = timing.time_interleaved(shape, candidates, ROUNDS[1], 1, graph_clock)
    spreads: list[Spread] = [(row.seconds, *row.spread) for row in timed]
    return Product(
        out=out,
        columns=columns,
        rows=rows,
        layers=layers.count,
        kernel=kernel.name,
        seconds=spreads[1],
        dense=spreads[0],
    )


def _rounds(candidates: list[Candidate]) -> int:
    """How many rounds there is time for."""
    seconds = 0.0
    for candidate in candidates:
        candidate.run(0)
        started = time.perf_counter()
        candidate.run(1)
        seconds += time.perf_counter() - started
    least, most = ROUNDS
    return min(max(int(SECONDS / (seconds * (BURST + 1))), least), most)


def time_model(folder: Path, dtype: str, device: str, say: Callable[[str], None]) -> Decoding:
    """A saved model, packed and dense, in turns: batch 1, greedy.

    say: is told what is done. StoreError where the folder cannot be read, ConfigError where a GPU
    computes in another dtype than bfloat16.
    """
    if device != "cpu":
        return _on_gpu(folder, dtype, say)
    variants = (Variant(True, dtype), Variant(False, dtype))
    say("measuring memory")
    peaks = [peak_of(folder, variant, PROMPT, TOKENS) for variant in variants]
    say("reading and writing")
    models = [load(folder, dtype, variant.packed).model for variant in variants]
    seconds = [sum(once(model, PROMPT, TOKENS)) for model in models]  # warms up, too
    least, most = REPEATS
    turns = min(max(int(SECONDS_OF_MODEL / max(seconds)), least), most)
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(turns):
        for model, of_model in zip(models, times, strict=True):
            of_model.append(once(model, PROMPT, TOKENS))
    speeds = [
        speed_of(variant.name, of_model, PROMPT, TOKENS, peak, {})
        for variant, of_model, peak in zip(variants, times, peaks, strict=True)
    ]
    return _decoding(*speeds)


def _on_gpu(folder: Path, dtype: str, say: Callable[[str], None]) -> Decoding:
    from qbench.latency.gpu_end_to_end import compare

    if dtype != "bfloat16":
        raise ConfigError(f"a GPU's decode rate is measured in bfloat16, and the cell is {dtype}")
    return _decoding(*compare(folder, PROMPT, TOKENS, REPEATS[1], say))


def _decoding(packed: Speed, dense: Speed) -> Decoding:
    return Decoding(
        prompt=PROMPT,
        tokens=TOKENS,
        packed=packed.decode,
        dense=dense.decode,
        packed_prefill=packed.prefill,
        dense_prefill=dense.prefill,
        packed_peak_bytes=packed.peak_bytes,
        dense_peak_bytes=dense.peak_bytes,
    )
