"""Quantization methods: one paper, one file."""

if __name__ != "qbench.methods":
    raise ModuleNotFoundError(
        "this folder is the package qbench.methods; the repository root is on sys.path "
        "(import qbench first, which takes it off, or run `qbench`, `pytest` or `python -P`)",
        name=__name__,
    )
