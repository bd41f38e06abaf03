"""Tables, pictures and the page, from records alone: nothing here needs torch."""

if __name__ != "qbench.reports":
    raise ModuleNotFoundError(
        "this folder is the package qbench.reports; the repository root is on sys.path "
        "(import qbench first, which takes it off, or run `qbench`, `pytest` or `python -P`)",
        name=__name__,
    )
