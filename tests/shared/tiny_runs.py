"""The command line of a small grid on a tiny model, shared by the tests of runs."""

from __future__ import annotations

from collections.abc import Sequence

TASKS = ("wikitext", "divergence", "arc_easy", "gsm8k")
LIMITS = (
    "wikitext.limit=2",
    "wikitext.length=64",
    "divergence.limit=2",
    "divergence.length=64",
    "arc_easy.limit=4",
    "gsm8k.limit=2",
    "gsm8k.generate=1",
    "calibration.samples=4",
    "calibration.length=32",
)
COMMON = [
    "--data",
    "mini",
    "--dtype",
    "float32",
    "--group-size",
    "32",
    "--no-latency",
    "--jobs",
    "1",
]


def run_args(
    model: object,
    out: object,
    methods: str = "none,rtn,alternating,gptq",
    bits: str = "2,4",
    extra: Sequence[object] = (),
    tasks: Sequence[str] = TASKS,
) -> list[object]:
    """A run of the grid `methods` x `bits` on the first few items of the tasks."""
    args = ["run", "--model", model, "--methods", methods, "--bits", bits, "--out", out, *COMMON]
    args += ["--tasks", ",".join(tasks)]
    for limit in LIMITS:
        if limit.startswith((*tasks, "calibration")):
            args += ["--set", limit]
    return [*args, *extra]


def empty_picture(figure: object, file: object, format: str, **options: object) -> None:
    """In the place of `Figure.savefig`: drawing takes longer than running a tiny model."""
    file.write("<svg/>" if format == "svg" else b"")
