"""How long the products of a packed model take, and the model itself."""

from __future__ import annotations

from qbench.records.frozen import Amount, Count, Frozen

Spread = tuple[Amount, Amount, Amount]  # the median, and the low and high end of a range


class Product(Frozen):
    """How long a product with one layer's weight takes, and torch's dense product.

    out, columns: shape of the weight. rows: of x. layers: how many linear layers of the model have
    this shape and format. kernel: the name of the one that computes it. seconds, dense: of the
    packed and of the dense product, measured in turns: median, tenth and ninetieth percentile.
    """

    out: Count
    columns: Count
    rows: Count
    layers: Count
    kernel: str
    seconds: Spread
    dense: Spread


class Decoding(Frozen):
    """How fast a whole model reads and writes, packed and dense in turns: batch 1, greedy.

    prompt, tokens: how many are read and written. packed, dense: tokens written per second: median,
    least, most. packed_prefill, dense_prefill: tokens read per second. packed_peak_bytes,
    dense_peak_bytes: the peak of memory while it is loaded, reads and writes.
    """

    prompt: Count
    tokens: Count
    packed: Spread
    dense: Spread
    packed_prefill: Spread
    dense_prefill: Spread
    packed_peak_bytes: Count
    dense_peak_bytes: Count


class Latency(Frozen):
    """How fast the packed model is on the machine where it was timed.

    device: name of the processor or GPU. threads: of the processor, None on a GPU. dtype: of x, and
    of the dense model. layers: number of quantized layers, None in older records. reason: why
    some of the times are missing, None where none is. failed: whether that is a failure, such as a
    process that was killed, and no limit that was asked for or file that was removed. code: a hash
    of the kernels and of how they were timed, empty in older records.
    """

    device: str
    threads: Count | None
    dtype: str
    products: tuple[Product, ...] = ()
    decoding: Decoding | None = None
    layers: Count | None = None
    reason: str | None = None
    failed: bool = False
    code: str = ""

    @property
    def place(self) -> str:
        """The device and how it computed, such as `Xeon, 2 threads, bfloat16`."""
        words = [self.device]
        if self.threads is not None:
            words.append(threads_in_words(self.threads))
        return ", ".join([*words, self.dtype])

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of rows of x that were timed, ascending."""
        return tuple(sorted({product.rows for product in self.products}))

    def milliseconds(self, rows: int) -> tuple[float, float] | None:
        """Milliseconds of all quantized linear layers, once each: (packed, dense).

        None where these rows were not timed, or not for all layers.
        """
        timed = [product for product in self.products if product.rows == rows]
        whole = self.reason is None or self.decoding is not None  # decoding is timed last
        if self.layers is not None:
            whole = sum(product.layers for product in timed) == self.layers
        if not timed or not whole:
            return None
        packed = sum(1000 * product.layers * product.seconds[0] for product in timed)
        dense = sum(1000 * product.layers * product.dense[0] for product in timed)
        return packed, dense


def threads_in_words(count: int) -> str:
    """`1 thread` or `2 threads`."""
    return "1 thread" if count == 1 else f"{count} threads"
