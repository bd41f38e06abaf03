"""`qbench check KERNEL`: ours keep every promise, and a broken one fails the check meant for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import linear

from qbench.checks import kernels as kernel_checks
from qbench.checks.kernels import check_kernel, kernel_names
from qbench.errors import ConfigError
from qbench.formats import Binary, Uniform
from qbench.kernels import registry
from qbench.kernels.contract import Kernel, Prepared
from qbench.kernels.description import weight_from


@pytest.mark.parametrize("name", kernel_names())
def test_every_registered_kernel_keeps_its_promises(name):
    verdicts = list(check_kernel(name))
    assert len(verdicts) == len(kernel_checks.CHECKS)
    assert [verdict for verdict in verdicts if verdict.outcome == "FAIL"] == []
    missing = registry.get_kernel(name).available()
    if missing is None:
        assert {verdict.outcome for verdict in verdicts} == {"ok"}
    else:
        assert {(verdict.outcome, verdict.reason) for verdict in verdicts} == {("n/a", missing)}


def dense(x, parts, bias, description):
    weight = weight_from(parts, description).dequantize().to(x.dtype)
    return linear(x, weight, None if bias is None else bias.to(x.dtype))


def ignores_zero_points(x, parts, bias, description):
    weight = weight_from(parts, description)
    if isinstance(weight, Uniform):
        weight = Uniform(
            weight.codes, weight.scale, None, weight.bits, weight.in_features, weight.group_size
        )
    return linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))


def ignores_shifts(x, parts, bias, description):
    weight = weight_from(parts, description)
    if isinstance(weight, Binary):
        weight = Binary(weight.planes, weight.alpha, None, weight.in_features, weight.group_size)
    return linear(x, weight.dequantize().to(x.dtype), None if bias is None else bias.to(x.dtype))


def real_zero_points_are_rounded(x, parts, bias, description):
    weight = weight_from(parts, description)
    zero_point = getattr(weight, "zero_point", None)
    if len(parts) == 3 and zero_point is not None and zero_point.dtype != torch.uint8:
        parts = [parts[0], parts[1], zero_point.round()]
    return dense(x, parts, bias, description)


def takes_one_span_for_all_rows(x, parts, bias, description):
    named = zip(description["parts"], parts, strict=True)
    spans = [
        part.mean().expand_as(part) if name.endswith("_span") else part for name, part in named
    ]
    return dense(x, spans, bias, description)


def ignores_the_bias(x, parts, bias, description):
    return dense(x, parts, None, description)


def a_bias_of_another_dtype_is_reinterpreted(x, parts, bias, description):
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.contiguous().view(x.dtype)[: len(bias)]
    return dense(x, parts, bias, description)


def transposes(x, parts, bias, description):
    weight = weight_from(parts, description).dequantize().to(x.dtype)
    scrambled = weight.T.reshape(weight.shape)
    return linear(x, scrambled, None if bias is None else bias.to(x.dtype))


def is_wrong_in_the_last_group(x, parts, bias, description):
    group = description["spec"]["group_size"]
    wrong = x.clone()
    wrong[..., -group:] = 0
    return dense(wrong if group == 128 else x, parts, bias, description)


def drops_the_rest_of_the_outputs(x, parts, bias, description):
    y = dense(x, parts, bias, description)
    y[..., y.shape[-1] // 8 * 8 :] = 0
    return y


def is_wrong_at_eight_bits(x, parts, bias, description):
    weight = weight_from(parts, description)
    y = dense(x, parts, bias, description)
    return y * 1.01 if weight.bits == 8 else y


def accumulates_in_bfloat16(x, parts, bias, description):
    weight = weight_from(parts, description).dequantize().bfloat16()
    total = torch.zeros(*x.shape[:-1], len(weight), dtype=torch.bfloat16)
    for column in range(weight.shape[1]):
        total += x[..., column, None].bfloat16() * weight[:, column]
    return (total if bias is None else total + bias.bfloat16()).to(x.dtype)


def rounds_x_to_float16(x, parts, bias, description):
    return dense(x.half(), parts, bias, description).to(x.dtype)


def spreads_nan(x, parts, bias, description):
    return dense(x, parts, bias, description) + 0 * x.sum()


def hides_nan(x, parts, bias, description):
    return dense(x.nan_to_num(), parts, bias, description)


def divides_by_the_size_of_a_row(x, parts, bias, description):
    size = x.abs().amax(-1, keepdim=True)
    return dense(x / size, parts, None, description) * size + (0 if bias is None else bias)


def takes_strides_for_granted(x, parts, bias, description):
    return dense(x.as_strided(x.shape, x.contiguous().stride()), parts, bias, description)


def is_wrong_in_large_batches(x, parts, bias, description):
    y = dense(x, parts, bias, description)
    return y + 1 if y.numel() // y.shape[-1] > 64 else y


def fails_without_rows(x, parts, bias, description):
    if x.numel() == 0:
        raise ZeroDivisionError("no rows")
    return dense(x, parts, bias, description)


def computes_in_float32(x, parts, bias, description):
    return dense(x.float(), parts, bias, description)


def flattens(x, parts, bias, description):
    return dense(x, parts, bias, description).flatten(0, -2)


def changes_x(x, parts, bias, description):
    y = dense(x, parts, bias, description)
    x.mul_(2)
    return y


def changes_the_weight(x, parts, bias, description):
    y = dense(x, parts, bias, description)
    parts[1].mul_(2)
    return y


_calls = itertools.count()
_buffers: dict = {}
_by_pointer: dict = {}
_by_storage: dict = {}
_by_place: dict = {}


def differs_from_call_to_call(x, parts, bias, description):
    return dense(x, parts, bias, description) * (1 + 1e-6 * (next(_calls) % 2))


def writes_into_the_same_buffer(x, parts, bias, description):
    y = dense(x, parts, bias, description)
    return _buffers.setdefault((tuple(y.shape), y.dtype), y.clone()).copy_(y)


def keeps_a_stale_layout(x, parts, bias, description):
    key = tuple((part.data_ptr(), part.untyped_storage()._cdata) for part in parts)
    if key not in _by_pointer:
        weight = weight_from([part.clone() for part in parts], description)
        _by_pointer[key] = parts, weight.dequantize()  # `parts`, so that no pointer is used again
    return linear(x, _by_pointer[key][1].to(x.dtype), bias if bias is None else bias.to(x.dtype))


def keys_layouts_by_storage(x, parts, bias, description):
    versions = tuple(part._version for part in parts)
    key = parts[0].untyped_storage()._cdata, versions, json_of(description)
    if key not in _by_storage:
        _by_storage[key] = parts, weight_from(parts, description).dequantize()
    return linear(x, _by_storage[key][1].to(x.dtype), bias if bias is None else bias.to(x.dtype))


def keys_layouts_by_place(x, parts, bias, description):
    seen = tuple((part.data_ptr(), part._version) for part in parts)
    key = seen, json_of(description)
    if key not in _by_place:
        _by_place[key] = parts, weight_from(parts, description).dequantize()
    return linear(x, _by_place[key][1].to(x.dtype), bias if bias is None else bias.to(x.dtype))


def json_of(description):
    return repr(sorted(description.items()))


@pytest.fixture
def verdicts(monkeypatch):
    """verdicts(run, **declared): check -> verdict of a kernel that is registered meanwhile."""

    def check(run, **declared):
        known = {name: k for name, k in registry.all_kernels().items() if name != "broken"}
        monkeypatch.setattr(registry, "_known", known)
        declared = {"formats": ("uniform", "binary"), "dtypes": (torch.float32,)} | declared
        registry.register(Kernel("broken", run, **declared))
        names = [check.__name__ for check in kernel_checks.CHECKS]
        return dict(zip(names, check_kernel("broken"), strict=True))

    yield check
    monkeypatch.undo()
    registry.choose.cache_clear()


HALF = {"dtypes": (torch.float32, torch.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "run, meant, declared",
    [
        (ignores_zero_points, "offsets", {}),
        (ignores_shifts, "offsets", {}),
        (real_zero_points_are_rounded, "offsets", {}),
        (takes_one_span_for_all_rows, "offsets", {}),
        (ignores_the_bias, "bias", {}),
        (a_bias_of_another_dtype_is_reinterpreted, "bias", HALF),
        (transposes, "bits", {}),
        (is_wrong_in_the_last_group, "groups", {}),
        (drops_the_rest_of_the_outputs, "shapes", {}),
        (is_wrong_at_eight_bits, "bits", {}),
        (accumulates_in_bfloat16, "bits", {"dtypes": (torch.bfloat16,)}),
        (rounds_x_to_float16, "range", {"error": 1e-2}),
        (spreads_nan, "not_finite", {}),
        (hides_nan, "not_finite", {}),
        (divides_by_the_size_of_a_row, "zero_rows", {}),
        (takes_strides_for_granted, "axes", {}),
        (is_wrong_in_large_batches, "batches", {}),
        (fails_without_rows, "batches", {}),
        (computes_in_float32, "bits", HALF),
        (flattens, "axes", {}),
        (changes_x, "untouched", {}),
        (changes_the_weight, "untouched", {}),
        (differs_from_call_to_call, "deterministic", {}),
        (writes_into_the_same_buffer, "untouched", {}),
        (keeps_a_stale_layout, "written_weight", {}),
        (keys_layouts_by_storage, "other_weights", {}),
        (keys_layouts_by_place, "other_weights", {}),
    ],
)
def test_a_broken_kernel_fails_the_check_that_is_meant_for_it(verdicts, run, meant, declared):
    outcomes = verdicts(run, **declared)
    verdict = outcomes[f"check_{meant}"]
    assert verdict.outcome == "FAIL" and verdict.reason, outcomes
    assert verdict.subject == "broken"


def test_a_kernel_that_raises_where_it_declares_to_serve_fails(verdicts):
    def raises(x, parts, bias, description):
        raise RuntimeError("not written yet")

    outcomes = verdicts(raises)
    assert {verdict.outcome for verdict in outcomes.values()} == {"FAIL"}
    assert "RuntimeError: not written yet" in outcomes["check_bits"].reason


def test_what_a_kernel_refuses_does_not_apply(verdicts):
    def refuses(request):
        return None if request.format == "binary" and request.rows == 1 else "one row at a time"

    outcomes = verdicts(dense, refuses=refuses)
    assert outcomes["check_batches"].outcome == "ok"
    assert outcomes["check_bits"].outcome == "n/a"
    assert outcomes["check_bits"].reason == "one row at a time"
    narrow = verdicts(dense, formats=("binary",), bits=(2, 2), batch=(5, 5))
    assert {verdict.outcome for verdict in narrow.values()} == {"ok", "n/a"}


def test_what_is_timed_is_checked(verdicts):
    def nothing_read(weight):
        return Prepared(lambda x: linear(x, weight.dequantize()), 1)

    def another_product(weight):
        return Prepared(lambda x: 2 * linear(x, weight.dequantize()), 1 << 20)

    assert "bytes are stated" in verdicts(dense, prepare=nothing_read)["check_prepared"].reason
    assert "relative error 1" in verdicts(dense, prepare=another_product)["check_prepared"].reason


def test_an_unknown_kernel():
    with pytest.raises(ConfigError, match="unknown kernel 'cpu-binery'. Did you mean"):
        list(check_kernel("cpu-binery"))
