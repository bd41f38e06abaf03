"""Matrix products with quantized weights: one kernel, one file; `reference` defines them all."""

if __name__ != "qbench.kernels":
    # The repository's root is on sys.path, and somebody imports a package `kernels`: transformers
    # does, which then asks for its version, and a program may import transformers before qbench. An
    # error would be theirs; a package without a file and without a path is what they take for
    # absent, and none of our modules can be imported from it a second time.
    __path__ = []
    del __file__
