"""What a model is judged by: lm-eval tasks, perplexity, divergence, and their data."""

if __name__ != "qbench.tasks":
    raise ModuleNotFoundError(
        "this folder is the package qbench.tasks; the repository root is on sys.path "
        "(import qbench first, which takes it off, or run `qbench`, `pytest` or `python -P`)",
        name=__name__,
    )
