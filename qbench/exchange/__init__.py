"""Quantized weights in the layouts of other programs: what can be said exactly is converted, the rest is refused."""
