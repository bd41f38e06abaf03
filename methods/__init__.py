"""Quantization methods: one paper, one file."""

if __name__ != "qbench.methods":
    raise ImportError(
        "this folder is the package qbench.methods; the repository root is on sys.path "
        "(run `qbench`, `pytest` or `python -P`)"
    )
