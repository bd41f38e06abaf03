"""What a processor can do, timed among the candidates: reading memory, and matrix products.

A call of a probe takes about as long as a product does. Where other programs run, a longer one is
interrupted every time, and its rate is then a part of what the products can reach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.kernels.cpu.library import chosen_isa, library
from qbench.latency.candidates import SHORT, random_matrix
from qbench.latency.timing import Candidate, copies_of

READ_BYTES = 2 << 20  # that a call reads
# Of square matrices: with 1024, float32 products had a third of this one's rate on two busy cores,
# and 256 is too few for the matrix units in bfloat16.
ORDER = 384
MULTIPLY_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def probes() -> list[Candidate]:
    """Reading memory, products in bfloat16, in float32. QbenchError without the C library."""
    return [reader(), multiplier(torch.bfloat16), multiplier(torch.float32)]


def reader(nbytes: int = READ_BYTES) -> Candidate:
    """Reads so many bytes of memory and computes nothing to speak of: its rate is the bandwidth.

    Each copy is the next piece of a memory that the last-level cache does not hold. QbenchError
    without the C library.
    """
    functions = library()
    copies = copies_of(nbytes)
    memory = torch.empty(copies, nbytes, dtype=torch.uint8)
    functions.bcq_prefer_huge_pages(memory.data_ptr(), memory.nbytes)
    memory.fill_(1)
    done = torch.ones(1, dtype=torch.float64)

    def run(copy: int) -> Tensor:
        piece = memory.data_ptr() + copy * nbytes
        functions.bcq_read(piece, nbytes, chosen_isa(), torch.get_num_threads())
        return done

    return Candidate("read", 8, nbytes, copies, run, done, 0.0)


def multiplier(dtype: torch.dtype, order: int = ORDER) -> Candidate:
    """torch's product of two square matrices in the cache: its rate is the matrix rate."""
    x = random_matrix(order, order, 1).to(dtype)
    weight = random_matrix(order, order, 2).to(dtype)

    def run(copy: int) -> Tensor:
        return x @ weight

    return Candidate(
        f"multiply {SHORT[dtype]}",
        0,
        weight.nbytes,
        1,
        run,
        x.double() @ weight.double(),
        MULTIPLY_LIMITS[dtype],
        2 * order**3,
    )
