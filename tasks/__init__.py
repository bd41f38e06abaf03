"""What a model is judged by: lm-eval tasks, perplexity, divergence, and their data."""

if __name__ != "qbench.tasks":
    raise ImportError(
        "this folder is the package qbench.tasks; the repository root is on sys.path "
        "(run `qbench`, `pytest` or `python -P`)"
    )
