"""The promises that every kernel keeps: `qbench check NAME` holds any kernel against the reference.

A check multiplies with random weights through the operator, as a model does, and compares with
`qbench.kernels.reference` in float64. Requests that the kernel refuses are left out, and a check
that has none left is `n/a`. A request that it declares to serve and then raises on is a FAIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch

from qbench.checks.kernel_trial import (
    GROUP,
    IN,
    OUT,
    ROWS,
    Trial,
    exact,
    inputs,
    sample,
    scaled,
    storages,
    views_of,
)
from qbench.checks.verdict import Broke, Verdict
from qbench.contracts import WeightFormat
from qbench.formats import from_tensors
from qbench.kernels.description import moved, prepare
from qbench.kernels.registry import all_kernels, get_kernel
from qbench.kernels.samples import random_binary, random_lattice, random_rotated, random_uniform

GROUPS = (32, 64, 128, IN)  # the last is one group per output channel
BATCHES = (0, 1, 2, 5, 17, 64, 130)
SHAPES = ((1, 32), (5, 64), (33, 192), (70, 384), (31, 544), (129, 96))  # (out, in)
FACTORS = (1e-28, 1e20)  # of x
HALF_FACTORS = (2.0**-8, 2.0**8)  # of x in float16, which has no larger range
SCALES = (2.0**-6, 2.0**6)  # factors of a weight


def kernel_names() -> list[str]:
    """All kernels, also those that cannot be used on this machine."""
    return list(all_kernels())


def check_kernel(name: str) -> Iterator[Verdict]:
    """A verdict for every check of the kernel of this name. ConfigError for an unknown name."""
    kernel = get_kernel(name)
    missing = kernel.available()
    for check in CHECKS:
        title = check.__name__
        if missing is not None:
            yield Verdict(name, title, "n/a", missing)
            continue
        trial = Trial(kernel)
        try:
            check(trial)
        except Broke as broken:
            yield Verdict(name, title, "FAIL", str(broken))
        except Exception as error:  # a foreign kernel may raise anything
            yield Verdict(name, title, "FAIL", f"it raised {type(error).__name__}: {error}")
        else:
            if trial.served:
                yield Verdict(name, title, "ok")
            else:
                yield Verdict(name, title, "n/a", trial.refusal or "nothing it serves applies")


def check_bits(trial: Trial) -> None:
    """Every format, bit-width and dtype of x is within the declared error."""
    for kind in trial.formats():
        for bits in trial.widths(kind):
            weight = sample(trial, kind, bits=bits)
            for dtype in trial.dtypes():
                trial.compare(inputs(trial, ROWS, IN, dtype), weight, what=f"{bits} bits")


def check_groups(trial: Trial) -> None:
    """Groups of 32, 64, 128 and a whole row are within the declared error."""
    for kind, group in product(trial.formats(), GROUPS):
        for bits in trial.widths(kind):
            weight = sample(trial, kind, group=group, bits=bits)
            for dtype in trial.dtypes():
                x = inputs(trial, ROWS, IN, dtype)
                trial.compare(x, weight, what=f"groups of {group}, {bits} bits")


def check_batches(trial: Trial) -> None:
    """Every number of rows of x, from none, is within the declared error."""
    for kind, rows, dtype in product(trial.formats(), BATCHES, trial.dtypes()):
        for bits in trial.widths(kind)[:4]:
            weight = sample(trial, kind, bits=bits)
            trial.compare(inputs(trial, rows, IN, dtype), weight, what=f"{rows} rows")


def check_shapes(trial: Trial) -> None:
    """Shapes that are no multiple of a block are within the declared error."""
    for kind, shape in product(trial.formats(), SHAPES):
        for bits, dtype in product(trial.widths(kind), trial.dtypes()):
            columns = shape[1]
            weight = sample(trial, kind, shape=shape, bits=bits, group=min(32, columns))
            trial.compare(inputs(trial, 3, columns, dtype), weight, what=f"shape {shape}")


def check_axes(trial: Trial) -> None:
    """x may have one axis or several, and any strides."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        weight = sample(trial, kind)
        wide = inputs(trial, 6, 2 * IN, dtype)
        views = {
            "one axis": wide[0, :IN],
            "three axes": wide[:, :IN].reshape(2, 3, IN),
            "every second column": wide[:, ::2],
            "a part of the columns": wide[:, IN:],
            "a transposed x": inputs(trial, IN, 6, dtype).T,
            "an expanded x": wide[:1, :IN].expand(4, IN),
        }
        for what, x in views.items():
            trial.compare(x, weight, what=what)


def check_bias(trial: Trial) -> None:
    """A bias is added, in the dtype of x and in float32."""
    for kind, dtype, rows in product(trial.formats(), trial.dtypes(), (1, ROWS, 130)):
        weight = sample(trial, kind)
        x = inputs(trial, rows, IN, dtype)
        for stored in {dtype, torch.float32}:
            bias = 10 * inputs(trial, 1, OUT, torch.float32, seed=5)[0].to(dtype)
            trial.compare(x, weight, bias.to(stored), what=f"a bias in {stored}")


def check_offsets(trial: Trial) -> None:
    """Zero points, shifts, float32 scales and scales as integers mean what they say.

    Zero points are integers, real numbers or none; shifts are there or not.
    """
    stored = (torch.float16, torch.float32)
    for bits, dtype, scales in product((1, 2, 3, 4, 8), trial.dtypes(), stored):
        variants: dict[str, WeightFormat] = {}
        for zero_points in ("integer", "real", "middle"):
            uniform = random_uniform((OUT, IN), bits, GROUP, zero_points=zero_points, dtype=scales)
            variants[f"{zero_points} zero points"] = uniform
        for shift in (True, False):
            what = "a shift" if shift else "no shift"
            shape = (OUT, IN)
            variants[what] = random_binary(shape, bits, GROUP, shift=shift, dtype=scales)
            turned = random_rotated(shape, bits, GROUP, shift=shift, dtype=scales)
            variants[f"{what}, rotated"] = turned
        if scales == torch.float16:
            variants |= _stepped_variants(bits)
        variants["features by sign"] = random_lattice((OUT, IN), bits, features="signs")
        for what, weight in variants.items():
            x = inputs(trial, ROWS, IN, dtype) + 1  # a mean, so that offsets count
            trial.compare(x, moved(weight, trial.device), what=f"{what}, {bits} bits")


def _stepped_variants(bits: int) -> dict[str, WeightFormat]:
    """Weights whose scales are stored as integers times a step."""
    variants: dict[str, WeightFormat] = {}
    for scale_bits in (4, 7):
        what = f"{scale_bits}-bit scales"
        for offset in (True, False):
            shift = "a" if offset else "no"
            variants[f"{what}, {shift} shift"] = random_binary(
                (OUT, IN), bits, GROUP, shift=offset, scale_bits=scale_bits
            )
        for zero_points in ("integer", "real", "middle"):
            variants[f"{what}, {zero_points} zero points"] = random_uniform(
                (OUT, IN), bits, GROUP, zero_points=zero_points, scale_bits=scale_bits
            )
    return variants


def check_zero_rows(trial: Trial) -> None:
    """A row of zeros gives zeros, or the bias."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        weight = sample(trial, kind)
        x = inputs(trial, ROWS, IN, dtype)
        x[1] = 0
        if trial.serves(x, weight):
            y = trial.multiply(x, weight)
            if y[1].any():
                raise Broke(f"{kind}: a row of zeros gives {y[1].abs().max().item():.3g}")
            zeros = torch.zeros_like(x)
            bias = inputs(trial, 1, OUT, dtype, seed=5)[0]
            trial.compare(zeros, weight, bias, what="x of zeros, with a bias")


def check_range(trial: Trial) -> None:
    """Large and small inputs and scales stay within the declared error."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        for factor in HALF_FACTORS if dtype == torch.float16 else FACTORS:
            x = (inputs(trial, ROWS, IN, torch.float32) * factor).to(dtype)
            trial.compare(x, sample(trial, kind), what=f"x times {factor:.0e}")
        for factor in SCALES:
            weight = scaled(sample(trial, kind), factor)
            x = inputs(trial, ROWS, IN, dtype)
            trial.compare(x, weight, what=f"scales times {factor:.0e}")


def check_not_finite(trial: Trial) -> None:
    """NaN or infinity in a row of x shows in that row, and in no other."""
    values = (float("nan"), float("inf"))
    for kind, dtype, rows in product(trial.formats(), trial.dtypes(), (3, 64)):
        weight = sample(trial, kind)
        for value in values:
            x = inputs(trial, rows, IN, dtype)
            x[1, 7] = value
            if not trial.serves(x, weight):
                continue
            y = trial.multiply(x, weight)
            if y[1].isfinite().all():
                raise Broke(f"{kind}, {rows} rows: {value} in a row of x gives finite numbers")
            if value != value and not y[1].isnan().all():
                raise Broke(f"{kind}, {rows} rows: NaN in a row of x gives numbers in some outputs")
            others = torch.arange(rows) != 1
            try:
                trial.close(y[others], exact(x[others], weight), dtype)
            except Broke as broken:
                raise Broke(f"{kind}: {value} in one row of x spoils others: {broken}") from broken


def check_deterministic(trial: Trial) -> None:
    """The same product gives the same bits."""
    for kind, dtype, rows in product(trial.formats(), trial.dtypes(), (1, ROWS, 64)):
        weight = sample(trial, kind)
        x = inputs(trial, rows, IN, dtype)
        if trial.serves(x, weight):
            first = trial.multiply(x, weight)
            for _ in range(2):
                if not torch.equal(first, trial.multiply(x, weight)):
                    raise Broke(f"{kind}, {rows} rows: two products of the same x differ")


def check_untouched(trial: Trial) -> None:
    """Neither x, nor the weight, nor the bias is changed, and the result is new memory."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        weight = sample(trial, kind)
        x = inputs(trial, ROWS, IN, dtype)
        bias = inputs(trial, 1, OUT, dtype, seed=5)[0]
        if not trial.serves(x, weight):
            continue
        arguments = {"x": x, "the bias": bias} | weight.to_tensors()
        before = {name: tensor.clone() for name, tensor in arguments.items()}
        first = trial.multiply(x, weight, bias)
        kept = first.clone()
        for name, tensor in arguments.items():
            if not torch.equal(tensor, before[name]):
                raise Broke(f"{kind}: {name} was changed")
        trial.multiply(x + 1, weight, bias)
        if not torch.equal(first, kept):
            raise Broke(f"{kind}: a later product overwrites the result of an earlier one")


def check_written_weight(trial: Trial) -> None:
    """A weight that is written in place is read again."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        x = inputs(trial, ROWS, IN, dtype)
        for made, other in zip(storages(trial, kind), storages(trial, kind, seed=9), strict=True):
            for part, tensor in other.to_tensors().items():
                copies = {name: old.clone() for name, old in made.to_tensors().items()}
                weight = from_tensors(kind, copies, made.spec())
                if not trial.serves(x, weight):
                    continue
                trial.multiply(x, weight)
                with torch.no_grad():
                    copies[part].copy_(tensor)
                trial.compare(x, weight, what=f"after {part} was written in place")


def check_other_weights(trial: Trial) -> None:
    """Weights that take turns, or share memory with others, are told apart."""
    for kind, dtype in product(trial.formats(), trial.dtypes()):
        x = inputs(trial, ROWS, IN, dtype)
        for weights in zip(*(storages(trial, kind, seed) for seed in (0, 1, 2)), strict=True):
            for weight in (*weights, *weights):
                trial.compare(x, weight, what="weights in turn")
            parts = weights[0].to_tensors()
            stacked = {part: torch.stack([tensor, tensor]) for part, tensor in parts.items()}
            other = weights[1].to_tensors()
            for part, tensor in stacked.items():
                tensor[1] = other[part]
            for index in (0, 1):
                views = {part: tensor[index] for part, tensor in stacked.items()}
                weight = from_tensors(kind, views, weights[0].spec())
                trial.compare(x, weight, what=f"weight {index} of two in one storage")
            for what, weight in views_of(weights[0]).items():
                trial.compare(x, weights[0], what="a weight, before its views")
                trial.compare(x, weight, what=what)


def check_prepared(trial: Trial) -> None:
    """What `qbench latency` times is the same product, and its bytes are counted."""
    for kind, dtype, rows in product(trial.formats(), trial.dtypes(), (1, 64)):
        weight = sample(trial, kind)
        x = inputs(trial, rows, IN, dtype)
        if not trial.serves(x, weight):
            continue
        prepared = prepare(trial.kernel, weight)
        trial.served += 1
        trial.close(prepared.run(x), exact(x, weight), dtype)
        codes = next(iter(weight.to_tensors().values()))
        if prepared.nbytes < codes.nbytes:
            raise Broke(
                f"{kind}: {prepared.nbytes} bytes are stated, and the codes alone take "
                f"{codes.nbytes}"
            )


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_bits,
    check_groups,
    check_batches,
    check_shapes,
    check_axes,
    check_bias,
    check_offsets,
    check_zero_rows,
    check_range,
    check_not_finite,
    check_deterministic,
    check_untouched,
    check_written_weight,
    check_other_weights,
    check_prepared,
)
