"""Tables, pictures and the page, from records alone: nothing here needs torch."""

if __name__ != "qbench.reports":
    raise ImportError(
        "this folder is the package qbench.reports; the repository root is on sys.path "
        "(run `qbench`, `pytest` or `python -P`)"
    )
