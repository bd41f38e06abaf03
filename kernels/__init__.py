"""Matrix products with quantized weights: one kernel, one file; `reference` defines them all."""

if __name__ != "qbench.kernels":
    raise ImportError(
        "this folder is the package qbench.kernels; the repository root is on sys.path "
        "(run `qbench`, `pytest` or `python -P`)"
    )
