"""What scales as integers cost and save, on the weights of a model.

    python benchmarks/scale_bits.py [MODEL]

Every layer of a few blocks is coded by `alternating` in groups of 64, its scales are fitted among
those that can be stored (`storable.py`), and codes are chosen again. A row of the table says how
many bits a weight takes, and how much larger the squared error is than with half precision; it may
be smaller, since half precision keeps the numbers where `alternating` ended. "nearest": the
nearest numbers instead. "a span each": the nearest with a span for every alpha and for the shift,
alpha_1 of n bits, the others of n - 1 and the shift of n - 2.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from qbench.formats import Binary
from qbench.formats.snapping import Part, snapped, stored_coding
from qbench.formats.stepped import Numbers, Stepped, values
from qbench.methods.alternating import Alternating
from qbench.methods.levels import nearest_planes
from qbench.methods.storable import storable_coding
from qbench.models.blocks import linears, read_weight
from qbench.models.loading import load_model
from qbench.models.source import find_model

GROUP = 64
BLOCKS = (0, 5, 15, 29)
ROWS = 192  # of each layer
SCALE_BITS = (5, 6, 7, 8)
Row = tuple[float, int, int]  # squared error, bits, weights


def layers(name: str) -> Iterator[Tensor]:
    """Weights (out, in) float32 of the linear layers of BLOCKS, at most ROWS rows of each."""
    model, _ = load_model(find_model(name), "float32")
    for layer, module in linears(model.model).items():
        if any(f"layers.{block}." in f"{layer}." for block in BLOCKS):
            yield read_weight(module).float()[:ROWS]


def coded(weight: Tensor, alpha: Numbers, shift: Numbers) -> Binary:
    """The weight in the nearest levels of alpha (out, groups, planes) and shift (out, groups)."""
    rows = weight.reshape(-1, GROUP)
    a = values(alpha).float().flatten(0, 1)
    planes = nearest_planes(rows, a, values(shift).float().flatten())
    return Binary.from_planes(planes.view(-1, *weight.shape), alpha, shift)


def a_span_each(alpha: Tensor, shift: Tensor, scale_bits: int) -> list[Stepped]:
    """The alphas of each plane and the shift, each snapped by itself."""
    columns = []
    for plane, column in enumerate(alpha.unbind(-1)):
        width = scale_bits - min(plane, 1)
        columns += snapped([Part(column, width)], width, None)
    return columns + snapped([Part(shift, scale_bits - 2, signed=True)], scale_bits - 2, None)


def measure(weight: Tensor, bits: int) -> Iterator[tuple[str, Row]]:
    """Every way to store the scales of one layer."""
    rows = len(weight)
    codings = []
    for alpha, shift in Alternating().fits(weight.reshape(-1, GROUP), bits):
        codings.append((alpha.view(rows, -1, bits), shift.view(rows, -1)))
    alpha, shift = codings[0]

    def row(alpha: Numbers, shift: Numbers | None, nbytes: int = 0) -> Row:
        """nbytes: of alpha and shift; 0: as the format stores them."""
        assert shift is not None
        binary = coded(weight, alpha, shift)
        error = (binary.dequantize() - weight).square().sum().item()
        stored = {name: part.nbytes for name, part in binary.to_tensors().items()}
        total = stored["planes"] + nbytes if nbytes else sum(stored.values())
        return error, 8 * total, weight.numel()

    yield "half precision", row(alpha.half(), shift.half())
    for scale_bits in SCALE_BITS:
        yield f"scale_bits={scale_bits}", row(*storable_coding(weight, codings, scale_bits))
        yield f"  {scale_bits}, nearest", row(*stored_coding(alpha, shift, scale_bits))
        *each, offset = a_span_each(alpha, shift, scale_bits)
        nbytes = sum(part.codes.nbytes + part.span.nbytes for part in (*each, offset))
        planes = torch.stack([values(part) for part in each], -1)
        yield f"  {scale_bits}, a span each", row(planes, values(offset), nbytes)


def main(name: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    weights = list(layers(name))
    for bits in (2, 3, 4):
        rows: dict[str, list[Row]] = defaultdict(list)
        for weight in weights:
            for way, row in measure(weight, bits):
                rows[way].append(row)
        for way, measured in rows.items():
            pairs = zip(measured, rows["half precision"], strict=True)
            worse = sum(row[0] / half[0] - 1 for row, half in pairs) / len(measured)
            stored = sum(row[1] for row in measured) / sum(row[2] for row in measured)
            print(f"{bits} bits  {way:20} {stored:.3f} bits  error {worse:+.2%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
