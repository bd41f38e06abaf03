"""CUDA C++ sources -> machine code (cubins), by NVRTC, which comes with torch's CUDA wheels.

A cubin depends on the architecture, the version of NVRTC, the source, all headers of this folder
and the options. A hash of these names its file in the cache folder, which begins with the hash of
the rest, so that a damaged file is seen and compiled again. Files appear whole, and processes that
compile the same at the same time write the same. Where the folder cannot be written, each process
compiles for itself.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from qbench.errors import ConfigError, StoreError
from qbench.files.atomic import write_bytes
from qbench.files.cache import cache_folder

FOLDER = Path(__file__).resolve().parent  # of the sources and headers
OPTIONS = ("--std=c++17", "-default-device")
DIGEST = hashlib.sha256().digest_size


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled in this process, or None."""
    try:
        nvrtc_version()
    except ImportError:
        return "cuda-bindings is not installed; install qbench's extra `gpu`"
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return f"NVRTC cannot be loaded ({reason}); install nvidia-cuda-nvrtc"
    return None


@cache
def nvrtc_version() -> str:
    """Such as 13.0. ImportError or RuntimeError where there is none."""
    from cuda.bindings import nvrtc

    status, major, minor = nvrtc.nvrtcVersion()
    if status:
        raise RuntimeError(f"nvrtcVersion returned {status.name}")
    return f"{major}.{minor}"


@cache
def compiled_for() -> tuple[int, ...]:
    """The architectures that NVRTC compiles for, such as 90. ConfigError where it does not say."""
    from cuda.bindings import nvrtc

    return tuple(_checked(nvrtc.nvrtcGetSupportedArchs()))


def architecture(capability: tuple[int, int]) -> str:
    """What code for a GPU of this compute capability is compiled for: sm_80, .., sm_90a, .."""
    major, minor = capability
    suffix = "a" if capability == (9, 0) else ""  # wgmma exists in this variant alone
    return f"sm_{major}{minor}{suffix}"


def compiled(source: str, macros: Mapping[str, int], architecture: str) -> bytes:
    """The cubin of a source, from the cache folder or compiled now.

    source: name of a .cu file of this folder. macros: what is defined for it. architecture: such as
    sm_90a. ConfigError where NVRTC is missing or the source does not compile.
    """
    reason = unavailable()
    if reason is not None:
        raise ConfigError(f"{source} cannot be compiled: {reason}")
    options = (
        f"--gpu-architecture={architecture}",
        *OPTIONS,
        *(f"-D{name}={int(value)}" for name, value in sorted(macros.items())),
    )
    texts = {path.name: path.read_bytes() for path in (FOLDER / source, *_headers())}
    path = cache_folder() / "cubins" / f"{Path(source).stem}-{_key(options, texts)}.cubin"
    known = _stored(path)
    if known is not None:
        return known
    cubin = _compile(source, options, texts)
    with suppress(StoreError):  # where nothing can be kept, the next process compiles again
        write_bytes(path, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def compile_all(wanted: Iterable[tuple[str, Mapping[str, int]]], architecture: str) -> None:
    """Compile sources with their macros into the cache folder, by all processors at once.

    What does not compile is left out: who needs it gets the reason.
    """
    jobs = {(source, tuple(sorted(macros.items()))) for source, macros in wanted}
    context = multiprocessing.get_context("spawn")  # a GPU's context does not survive a fork
    with ProcessPoolExecutor(mp_context=context) as pool:
        list(pool.map(_try, *zip(*((*job, architecture) for job in sorted(jobs)), strict=True)))


def _try(source: str, macros: tuple[tuple[str, int], ...], architecture: str) -> None:
    with suppress(ConfigError):
        compiled(source, dict(macros), architecture)


def _headers() -> list[Path]:
    return sorted(FOLDER.glob("*.cuh"))


def _key(options: tuple[str, ...], texts: Mapping[str, bytes]) -> str:
    """Names what was compiled: 32 hexadecimal digits."""
    digest = hashlib.sha256(f"nvrtc {nvrtc_version()}".encode())
    for part in (*(option.encode() for option in options), *texts.values()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _stored(path: Path) -> bytes | None:
    """The cubin of a file in the cache; None where there is none, or a damaged one."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, cubin = data[:DIGEST], data[DIGEST:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == digest else None


def _compile(source: str, options: tuple[str, ...], texts: Mapping[str, bytes]) -> bytes:
    from cuda.bindings import nvrtc

    headers = {name: text for name, text in texts.items() if name != source}
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            texts[source],
            source.encode(),
            len(headers),
            list(headers.values()),
            [name.encode() for name in headers],
        )
    )
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status:
            raise ConfigError(
                f"{source} does not compile with {' '.join(options)}: {_log(program)}; "
                f"name another kernel, such as triton"
            )
        cubin = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(program: Any) -> str:
    """The first line of what NVRTC says of a program."""
    from cuda.bindings import nvrtc

    text = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc.nvrtcGetProgramLog(program, text))
    return text.decode(errors="replace").strip("\0 \n").partition("\n")[0] or "no reason given"


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of an answer of NVRTC, whose first part is its status."""
    status, *values = answer
    if status:
        raise ConfigError(f"NVRTC answered {status.name}; reinstall nvidia-cuda-nvrtc")
    return values[0] if values else None
