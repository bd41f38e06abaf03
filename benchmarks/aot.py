"""The Triton kernels compiled for GPUs that need not be there.

    PYTHONPATH=benchmarks python benchmarks/aot.py [--json FILE] [--quick]

Each kernel in its default configurations for sm_80, sm_90 and sm_100: registers, stack and spills
(loads and stores of local memory in the machine code), shared memory, writes to registers that are
still read (`registers_in_flight.py`), and the mix of instructions, in all and in the longest loop.
Needs triton, whose wheel carries ptxas and cuobjdump, and no GPU: these are properties of the
machine code, not speeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from machine_code import functions
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu import triton_binary
from qbench.kernels.gpu.triton_configs import DEFAULTS, Config, default
from qbench.kernels.gpu.triton_layout import Planes

ARCHITECTURES = (80, 90, 100)
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
}
SIZES = ("BN", "BM", "BK", "SPLIT", "BLOCK")  # compile-time arguments that say how it is launched
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

HEADER = (
    "kernel   sm   dtype     coding   b     g    m | blocks, warps, stages  | "
    "regs stack spills shared | loop, mix"
)


@dataclass(frozen=True)
class Case:
    """One compilation: x of (m, k) in `dtype`, a weight of (n, k)."""

    kernel: str
    architecture: int
    dtype: str
    coding: str
    bits: int
    group_size: int
    m: int
    n: int = 4096
    k: int = 4096


def cases(quick: bool = False) -> Iterator[Case]:
    """Every kernel, for the batches at which the defaults change.

    quick: the two main kernels, with one kind of weight.
    """
    batches = [limit for limit, _ in DEFAULTS]
    if quick:
        for arch, m in product(ARCHITECTURES, (8, 64)):
            yield Case("", arch, "bfloat16", "binary", 3, 128, m)
        return
    for arch, bits, coding in product(ARCHITECTURES, (2, 3, 4), ("binary", "uniform")):
        dtypes = ("bfloat16", "float16") if arch == 90 else ("bfloat16",)
        for dtype, m in product(dtypes, batches):
            yield Case("", arch, dtype, coding, bits, 128, m)
        yield Case("_dense", arch, "bfloat16", coding, bits, 128, 4096)
    for arch, group, m in product(ARCHITECTURES, (32, 64, 4096), (8, 64)):
        yield Case("", arch, "bfloat16", "binary", 3, group, m)
    for arch in ARCHITECTURES:
        yield Case("", arch, "float32", "binary", 3, 128, 8)
        yield Case("_reduce", arch, "bfloat16", "binary", 3, 128, 8)


def arguments(case: Case) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The kernel's name, its compile-time arguments and options, and the types of all others."""
    dtype = getattr(torch, case.dtype)
    planes = planes_of(case)
    config = Config("large") if case.kernel == "_dense" else default(case.m, case.n, case.k, dtype)
    types = {"words": "*i32", "alpha": "*fp16", "shift": "*fp16", "N": "i32", "signs": "i32"}
    if case.kernel == "_reduce":
        types = {"parts": "*fp32", "y": POINTERS[dtype], "size": "i32", "N": "i32"}
        return "_reduce", {"bias": None, "SPLIT": config.split, "BLOCK": 1024}, types
    if case.kernel == "_dense":
        return (
            "_dense",
            gpu.meaning(planes, dtype) | {"BN": 64, "BK": 64},
            types | {"dense": POINTERS[dtype]},
        )
    y = POINTERS[dtype if config.split == 1 else torch.float32]
    fixed = {"bias": None} | gpu.meaning(planes, dtype) | gpu.launch(config, planes)
    return f"_{config.kind}", fixed, types | {"x": POINTERS[dtype], "y": y, "M": "i32"}


def planes_of(case: Case) -> Planes:
    """A weight of the case, without data."""
    groups = case.k // case.group_size
    uniform = case.coding == "uniform"
    scales = 1 if uniform else case.bits
    words = torch.empty(case.k // 32, case.bits, case.n, dtype=torch.int32, device="meta")
    alpha = torch.empty(groups, scales, case.n, dtype=torch.float16, device="meta")
    return Planes(words, alpha, alpha[:, 0], case.group_size, uniform)


def compiled(case: Case) -> dict[str, Any]:
    """The case, its configuration, and what the machine code needs and consists of."""
    name, fixed, types = arguments(case)
    kernel = getattr(triton_binary, name)
    options = {}
    for option in ("num_warps", "num_stages"):
        if option in fixed:
            options[option] = fixed.pop(option)
    options["enable_fp_fusion"] = fixed.pop("enable_fp_fusion", True)
    signature = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    attributes = {}
    for index, arg in enumerate(kernel.arg_names):
        if arg != "M" and signature[arg] != "constexpr":
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    target = GPUTarget("cuda", case.architecture, 32)
    binary = triton.compile(source, target=target, options=options)
    sizes = {name: fixed[name] for name in SIZES if name in fixed}
    (facts,) = functions(binary.asm["cubin"], CUOBJDUMP).values()
    facts["shared_bytes"] = binary.metadata.shared
    return asdict(case) | {"kernel": name, "config": sizes | options} | facts


def per_bit(entry: dict[str, Any]) -> float | None:
    """Instructions of the loop a thread executes for each stored bit of a weight that it makes."""
    config = entry["config"]
    if "BM" not in config or not entry["loop"]:
        return None
    bits = config["BN"] * config["BK"] * entry["bits"] / (32 * config["num_warps"])
    return round(sum(entry["loop"].values()) / bits, 2)


def report(path: Path | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """All cases compiled, printed as they come; and written with the version to `path`, if any."""
    entries = []
    print(HEADER)
    for case in cases(quick):
        entry = compiled(case)
        entries.append(entry | {"loop_instructions_per_bit": per_bit(entry)})
        print(row(entries[-1]), flush=True)
    if path is not None:
        path.write_text(
            json.dumps({"triton": triton.__version__, "cases": entries}, indent=1) + "\n"
        )
    return entries


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    sizes = [str(size) for name, size in entry["config"].items() if name != "enable_fp_fusion"]
    block = " ".join(sizes)
    spills = entry["spill_loads"] + entry["spill_stores"]
    most_frequent = list(entry["loop"].items())[:7]
    mix = " ".join(f"{opcode}:{count}" for opcode, count in most_frequent)
    return (
        f"{entry['kernel']:8} {entry['architecture']:3}  {entry['dtype']:9} "
        f"{entry['coding']:7} {entry['bits']:2} "
        f"{entry['group_size']:5} {entry['m']:4} | {block:22} | "
        f"{entry['registers']:4} {entry['stack_bytes']:5} {spills:6} {entry['shared_bytes']:6} | "
        f"{sum(entry['loop'].values()):4} {entry['loop_instructions_per_bit'] or '':>6}  {mix}"
    )


def main() -> int:
    """Print the table; exit 1 where a kernel spills, or writes what a product still reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="two kernels, one kind of weight")
    options = parser.parse_args()
    entries = report(options.json, options.quick)
    spilled = sum(bool(entry["stack_bytes"] or entry["spill_loads"]) for entry in entries)
    early = [entry for entry in entries if entry["overwritten"]]
    print(f"{spilled} kernels spill registers, {len(early)} write what a product in flight reads")
    for entry in early:
        print(f"{row(entry)}\n  {entry['overwritten'][0]}")
    return 1 if spilled or early else 0


if __name__ == "__main__":
    raise SystemExit(main())
