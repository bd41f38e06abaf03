"""llama.cpp's quantizer: from a GGUF file in full precision to one of the type that is asked."""

from __future__ import annotations

from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
from worker_files import Work, run


def quantize(work: Work) -> None:
    """Quantize as `llama-quantize` does without further arguments."""
    ffi, library = get_ffi(), get_lib()
    kind = work.settings["method"].rpartition(":")[2].upper()
    parameters = library.llama_model_quantize_default_params()
    parameters.nthread = work.threads
    parameters.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind}")
    target = work.output / "checkpoint.gguf"
    pointer = ffi.new("llama_model_quantize_params *", parameters)
    with work.quantizing():
        status = library.llama_model_quantize(work.model.encode(), str(target).encode(), pointer)
    if status:
        raise RuntimeError(f"llama_model_quantize gave {status} for {kind}")
    work.used = {"ftype": kind}


if __name__ == "__main__":
    run(quantize)
