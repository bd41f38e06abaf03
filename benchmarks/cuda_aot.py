"""The CUDA kernels compiled for GPUs that need not be there.

    PYTHONPATH=benchmarks python benchmarks/cuda_aot.py [--json FILE] [--quick]

Each kernel in its default configuration for sm_80, sm_89, sm_90a, sm_100 and sm_120: registers,
stack and spills (loads and stores of local memory in the machine code), and the mix of
instructions, in all and in the loop that multiplies. Needs nvidia-cuda-nvrtc, cuda-bindings,
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, and no GPU: these are properties of the machine
code, not speeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from machine_code import functions

from qbench.kernels.gpu.cuda import choice, dequantize, half_rows, launch, toolchain
from qbench.kernels.gpu.cuda.choice import DEQUANTIZE, MODULES, Choice, Gpu
from qbench.kernels.gpu.cuda.layout import CHUNK, TILE, CudaPlanes

ARCHITECTURES = (80, 89, 90, 100, 120)
MULTIPROCESSORS = 132
OUT, IN = 4096, 4096  # of the weights
UNIT = {
    "bit_serial": "BMMA",
    "byte_rows": "IMMA",
    "half_rows": "HMMA",
    "wide_rows": "HGMMA",
}  # that multiplies
BOUNDS = {  # a bit
    "bit_serial": 0.65,
    "byte_rows": 1.1,
    "half_rows": 1.5,
    "half_rows in spans": 1.2,
    "wide_rows": 4.2,
}
FEW_BYTES = 16  # of stack
PREPARATIONS = ("bit_planes", "bytes", "prepare", "dequantize")  # functions that multiply nothing
ROWS = {
    "bit_serial": (1, 4),
    "byte_rows": (4, 16),
    "half_rows": (8, 64),
    "wide_rows": (64, 256),
    DEQUANTIZE: (0,),
}
HEADER = (
    "function        sm   dtype    coding    b    g   m | "
    "regs stack spills | instructions, loop, a bit: mix"
)


@dataclass(frozen=True)
class Case:
    """One product: x of (rows, 4096) in `dtype`, a weight of (4096, 4096), group_size 0: all.

    coding: binary, binary without shift, or uniform. meta: dtype of its parameters.
    """

    kernel: str
    architecture: int
    rows: int
    bits: int
    group_size: int = 128
    coding: str = "binary"
    dtype: str = "bfloat16"
    meta: str = "float16"
    spans: bool = False  # half_rows in its first way with spans, instead of the default


def cases(quick: bool = False) -> Iterator[Case]:
    """Every kernel on every GPU, all that its code depends on, and what is used most.

    quick: without the last.
    """
    for kernel, architecture in product(ROWS, ARCHITECTURES):
        if served(kernel, architecture):
            yield Case(kernel, architecture, ROWS[kernel][0], 3)
    for kernel in ROWS:
        yield from variants(kernel)
    for rows, bits, group_size in product((8, 16), (2, 3, 4), (128, 32)):
        yield Case("half_rows", 90, rows, bits, group_size, spans=True)
    yield Case("half_rows", 80, 8, 3, spans=True)
    if quick:
        return
    for kernel, bits, coding in product(ROWS, (2, 3, 4), ("binary", "uniform")):
        for rows in ROWS[kernel]:
            yield Case(kernel, 90, rows, bits, coding=coding)


def variants(kernel: str) -> Iterator[Case]:
    """All widths, groups, codings, dtypes and numbers of rows of a kernel at least once."""
    groups = (128, 32, 64, 256, 0, 384, 128, 32)
    codings = ("binary", "uniform", "binary without shift")
    dtypes = ("bfloat16", "float16")
    metas = ("float16", "float16", "float32")
    for i, group_size in enumerate(groups):
        rows = ROWS[kernel]
        yield Case(
            kernel,
            90,
            rows[i // 2 % len(rows)],
            i + 1,
            group_size,
            codings[i % len(codings)],
            dtypes[i % len(dtypes)],
            metas[(i + 1) % len(metas)],
        )


def served(kernel: str, architecture: int) -> bool:
    """Whether a kernel is for GPUs of an architecture at all."""
    if kernel == DEQUANTIZE:
        return True
    rows = 64 if kernel == "wide_rows" else 4
    gpu = Gpu("", architecture, MULTIPROCESSORS)
    return choice.refusal(kernel, rows, planes_of(Case(kernel, architecture, rows, 1)), gpu) is None


def planes_of(case: Case) -> CudaPlanes:
    """A weight of the case, without data."""
    columns = 4224 if case.group_size == 384 else IN
    inputs = -(-columns // CHUNK) * CHUNK
    groups = -(-inputs // case.group_size) if case.group_size else 1
    uniform = case.coding == "uniform"
    shift = case.coding == "binary"
    numbers = 2 if uniform else case.bits + shift
    words = torch.empty(
        OUT // TILE, inputs // CHUNK, case.bits, 32, 4, dtype=torch.int32, device="meta"
    )
    params = torch.empty(
        OUT // TILE, groups, 8, numbers, 2, dtype=getattr(torch, case.meta), device="meta"
    )
    return CudaPlanes(words, params, (OUT, columns), case.group_size, uniform, shift)


def launched(
    rows: int, planes: CudaPlanes, dtype: torch.dtype, chosen: Choice
) -> list[launch.Planned]:
    """The launches of a product; planes: without data. dtype: of x."""
    x = torch.empty(rows, planes.shape[1], dtype=dtype, device="meta")
    with launch.planning() as planned:
        if chosen.kernel == DEQUANTIZE:
            dequantize.weight(planes, dtype)
            return planned
        module = MODULES[chosen.kernel]
        y = x.new_empty(rows, planes.shape[0])
        inputs = module.prepare(x, planes) if hasattr(module, "preparation") else x
        module.launch(inputs, planes, None, y, chosen.config)
    return planned


def compiled(case: Case) -> list[dict[str, Any]]:
    """An entry for each function of a case: what its machine code needs and consists of."""
    architecture = toolchain.architecture(divmod(case.architecture, 10))
    entries = []
    planes = planes_of(case)
    config = None
    if case.kernel != DEQUANTIZE:
        config = MODULES[case.kernel].default(case.rows, planes, MULTIPROCESSORS)
    if case.spans:
        offered = half_rows.configurations(case.rows, planes)
        config = next(offer for offer in offered if offer.span)
    chosen = Choice(case.kernel, config)
    for source, name, macros, threads in launched(
        case.rows, planes, getattr(torch, case.dtype), chosen
    ):
        cubin = toolchain.compiled(source, macros, architecture)
        unit = "" if name in PREPARATIONS else UNIT[case.kernel]
        facts = functions(cubin, cuobjdump(), unit)[name]
        entry = asdict(case) | {"function": name, "macros": macros, "threads": threads} | facts
        entries.append(entry | {"instructions_per_bit": per_bit(entry)})
    return entries


def per_bit(entry: dict[str, Any]) -> float | None:
    """Instructions of the loop that multiplies, of 32 lanes, for each stored bit that it takes.

    How many bits that are, its matrix instructions tell: one multiplies 16 x 128 bits by 8 planes
    of x, 16 x 32 by 4 rows, 16 x 16 weights by 8 rows, or 64 x 16 of a warpgroup by all.
    """
    macros = entry["macros"]
    unit = UNIT.get(entry["kernel"], "")
    multiplications = entry["loop"].get(unit, 0)
    if entry["function"] in PREPARATIONS or not multiplications:
        return None
    bits = macros["PLANES"]
    if unit == "BMMA":
        stored = multiplications / (macros["X_PLANES"] // 8 * entry["rows"]) * 16 * 128
    elif unit == "IMMA":
        stored = multiplications / -(-entry["rows"] // 4) * 16 * 32
    elif unit == "HMMA":
        stored = multiplications / (macros["ROWS"] // 8) * 16 * 16 * bits
    else:
        stored = multiplications * 64 * 16 / 4 * bits  # four warps share them
    return round(32 * sum(entry["loop"].values()) / stored, 3)


def faults(entries: list[dict[str, Any]]) -> list[str]:
    """What a function does that it should not: it spills, takes too many instructions a bit, or
    writes registers that a product in flight reads.

    A word or two that the compiler puts aside once, outside the loop, are no fault. The bound
    counts where instructions are scarce: few rows on Hopper, the usual widths and groups.
    """
    lines = []
    for entry in entries:
        what = row(entry).split("|")[0].strip()
        spilled = entry["loop"].get("LDL", 0) + entry["loop"].get("STL", 0)
        if entry["stack_bytes"] > FEW_BYTES or spilled:
            lines.append(f"{what}: {entry['stack_bytes']} bytes of stack, {spilled} spills a pass")
        if entry["overwritten"]:
            lines.append(
                f"{what}: a product in flight reads what {entry['overwritten'][0]!r} writes"
            )
        usual = entry["bits"] in (2, 3, 4) and entry["group_size"] == 128
        few = entry["architecture"] == 90 and entry["rows"] == ROWS[entry["kernel"]][0]
        cost = entry["instructions_per_bit"]
        if usual and few and cost is not None:
            bound = BOUNDS["half_rows in spans" if entry["spans"] else entry["kernel"]]
            if cost > bound:
                lines.append(f"{what}: {cost} instructions a bit, not {bound}")
    return lines


def cuobjdump() -> Path:
    """The program of nvidia-cuda-cuobjdump. RuntimeError where it is not installed."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("cu*/bin/cuobjdump")):
            if (path.parent / "nvdisasm").is_file():
                return path
    raise RuntimeError("cuobjdump is not installed; install qbench's extra `dev`")


def report(path: Path | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """All cases compiled, printed as they come; and written with the version to `path`, if any."""
    entries: list[dict[str, Any]] = []
    print(HEADER)
    with ProcessPoolExecutor() as pool:
        for functions in pool.map(compiled, cases(quick)):
            entries += functions
            for entry in functions:
                print(row(entry), flush=True)
    if path is not None:
        lines = ",\n".join(f"  {json.dumps(_brief(entry))}" for entry in entries)
        version, bounds = toolchain.nvrtc_version(), json.dumps(BOUNDS)
        path.write_text(
            f'{{\n "nvrtc": "{version}",\n "instructions_per_bit_at_most": {bounds},\n'
            f' "functions": [\n{lines}\n ]\n}}\n'
        )
    return entries


def _brief(entry: dict[str, Any]) -> dict[str, Any]:
    """As it is written: of all instructions their number, and what the loop has most of."""
    most = dict(list(entry["loop"].items())[:8])
    total = {"instructions": sum(entry["instructions"].values())}
    return entry | total | {"loop": sum(entry["loop"].values()), "loop_has_most": most}


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    spills = entry["spill_loads"] + entry["spill_stores"]
    mix = " ".join(f"{opcode}:{count}" for opcode, count in list(entry["loop"].items())[:7])
    return (
        f"{entry['function']:14} {entry['architecture']:3}  {entry['dtype']:8} "
        f"{entry['coding'][:7]:7} {entry['bits']:3} {entry['group_size']:4} {entry['rows']:3} | "
        f"{entry['registers']:4} {entry['stack_bytes']:5} {spills:6} | "
        f"{sum(entry['instructions'].values()):5} {sum(entry['loop'].values()):4} "
        f"{entry['instructions_per_bit'] or '':>6}  {mix}"
    )


def main() -> int:
    """Print the table; exit 1 where a kernel spills, or takes too many instructions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="leave out what is used most")
    options = parser.parse_args()
    entries = report(options.json, options.quick)
    lines = faults(entries)
    print("\n".join([*lines, f"{len(lines)} faults in {len(entries)} functions"]))
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
