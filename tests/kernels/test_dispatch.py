"""The choice of a kernel: named or automatic, never silent."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import qbench
from qbench import Scheme
from qbench.errors import ConfigError
from qbench.kernels import dispatch, registry
from qbench.kernels.contract import Kernel, Request
from qbench.kernels.cpu import library
from qbench.kernels.description import moved, prepare
from qbench.kernels.registry import choose, register
from qbench.kernels.samples import MAKERS, random_rotated

X = torch.linspace(-1, 1, 128).view(2, 64)
REQUEST = Request("binary", 3, 32, (40, 64), "cpu", torch.float32, 1)


@pytest.fixture
def weight():
    return qbench.get_method("greedy").quantize_weight(torch.randn(40, 64), Scheme(3, 32))


@pytest.fixture
def alone(monkeypatch):
    """A registry with the fallback alone."""
    monkeypatch.setattr(registry, "_known", {"dequantized": registry.get_kernel("dequantized")})
    choose.cache_clear()
    yield
    monkeypatch.undo()
    choose.cache_clear()


def test_a_named_kernel_serves_or_raises(weight):
    x = torch.randn(2, 64)
    dispatch.served(clear=True)
    with dispatch.using("dequantized"):
        assert torch.equal(
            dispatch.linear(x, weight), torch.nn.functional.linear(x, weight.dequantize())
        )
        with dispatch.using(None):
            dispatch.linear(x.double(), weight)
    assert dispatch.served() == {"dequantized": 2}
    with (
        dispatch.using("cpu-binary"),
        pytest.raises(ConfigError, match="'cpu-binary' cannot compute this: dtype"),
    ):
        dispatch.linear(x.double(), weight)
    with (
        pytest.raises(ConfigError, match="unknown kernel 'cpu-binery'. Did you mean"),
        dispatch.using("cpu-binery"),
    ):
        pass


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"dtype": torch.float16},
            "dtype torch.float16 is not one of torch.float32, torch.bfloat16",
        ),
        ({"format": "lattice"}, "format lattice is not one of binary, uniform"),
        ({"device": "cuda"}, "device cuda is not one of cpu"),
        ({"bits": 9}, r"bits=9 is not in 1..8"),
        (
            {"group_size": 48, "shape": (40, 96)},
            "groups of 48 in 96 inputs are not multiples of 32",
        ),
    ],
)
def test_what_the_cpu_kernel_does_not_take_is_dequantized_and_said(change, reason):
    request = REQUEST._replace(**change)
    assert choose(request).name == "dequantized"
    with pytest.raises(ConfigError, match=f"kernel 'cpu-binary' cannot compute this: {reason}"):
        choose(request, "cpu-binary")


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(library, "library_path", lambda: None)
    library.unavailable.cache_clear()
    choose.cache_clear()
    try:
        assert choose(REQUEST).name == "dequantized"
        with pytest.raises(
            ConfigError,
            match="its C library was not built; install qbench again where a C compiler is",
        ):
            choose(REQUEST, "cpu-binary")
    finally:
        monkeypatch.undo()
        library.unavailable.cache_clear()
        choose.cache_clear()


def test_the_highest_priority_is_preferred_whatever_the_order(alone):
    run = registry.get_kernel("dequantized").run
    register(Kernel("narrow", run, batch=(1, 4), automatic=True))
    register(Kernel("by-name", run, priority=99))
    register(Kernel("lower", run, automatic=True, priority=9))
    assert choose(REQUEST).name == "narrow"
    assert choose(REQUEST._replace(rows=5)).name == "lower"
    assert choose(REQUEST, "by-name").name == "by-name"
    with pytest.raises(ConfigError, match=r"5 rows of x are not in 1..4"):
        choose(REQUEST._replace(rows=5), "narrow")
    with pytest.raises(ConfigError, match="registered twice"):
        register(Kernel("narrow", run))


def test_the_request_of_every_format(tiny):
    for method, expected in {
        "rtn": ("uniform", 3, 16),
        "greedy": ("binary", 3, 16),
        "none": ("dense", None, None),
    }.items():
        weight = qbench.get_method(method).quantize_weight(torch.randn(4, 32), Scheme(3, 16))
        request = dispatch.request(torch.zeros(2, 5, 32), weight)
        assert request[:3] == expected and request.rows == 10 and request.shape == (4, 32)


def test_an_eager_product_does_without_the_operator_and_a_watched_one_is_one(monkeypatch, weight):
    x = torch.randn(3, 64)
    linear = dispatch.linear
    expected = linear(x, weight)
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Watching():
        assert torch.equal(linear(x, weight), expected)
    assert "qbench.linear.default" in seen
    monkeypatch.setattr(torch.ops.qbench, "linear", None)
    assert torch.equal(linear(x, weight), expected)
    with pytest.raises(TypeError):
        linear(x.clone().requires_grad_(), weight)
    with torch.no_grad():
        assert torch.equal(linear(x.clone().requires_grad_(), weight), expected)
    with pytest.raises(TypeError):
        torch.func.functionalize(lambda x: linear(x, weight))(x)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64)])
def test_gradients_of_x_and_of_the_bias(weight, shape):
    x = torch.randn(shape, requires_grad=True)
    bias = torch.zeros(40, requires_grad=True)
    y = dispatch.linear(x, weight, bias)
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ weight.dequantize())
    torch.testing.assert_close(bias.grad, grad.reshape(-1, 40).sum(0))


def _cubed(product):
    """x -> a sum whose second derivatives are not zero."""
    return lambda x: (product(x) ** 3).sum()


def test_derivatives_in_forward_mode(weight):
    x, along = torch.randn(2, 3, 64, dtype=torch.float64)
    bias = torch.randn(40, dtype=torch.float64)
    dense = weight.dequantize().double()
    with forward_ad.dual_level():
        y = dispatch.linear(forward_ad.make_dual(x, along), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, along @ dense.T)
        y = dispatch.linear(x, weight, forward_ad.make_dual(bias, 2 * bias))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, (2 * bias).expand(3, 40))
        assert forward_ad.unpack_dual(dispatch.linear(x, weight)).tangent is None
    both = [_cubed(lambda x: dispatch.linear(x, weight)), _cubed(lambda x: x @ dense.T)]

    def twice(f):
        return torch.func.jvp(lambda v: torch.func.jvp(f, (v,), (along,))[1], (x,), (along,))[1]

    def of_gradient(f):
        return torch.func.jvp(torch.func.grad(f), (x,), (along,))[1]

    for derivative in (twice, of_gradient):
        found, expected = map(derivative, both)
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_derivatives_in_forward_mode_of_a_compiled_function(weight):
    x, along = torch.randn(3, 64), torch.randn(3, 64)

    def derivative(x, along):
        return torch.func.jvp(lambda v: dispatch.linear(v, weight), (x,), (along,))[1]

    torch._dynamo.reset()
    found = torch.compile(derivative, backend="eager")(x, along)
    torch.testing.assert_close(found, along @ weight.dequantize().T)


@pytest.mark.parametrize("kernel", ["dequantized", None])
def test_autocast_changes_no_product(weight, kernel):
    x = torch.randn(200, 64, requires_grad=True)  # rows for which products are dense
    rotated = random_rotated((40, 64), 3, 32)
    for each in (weight, rotated):
        with dispatch.using(kernel):
            expected = dispatch.linear(x, each)
            (gradient,) = torch.autograd.grad(expected.sum(), x)
            with torch.autocast("cpu", torch.bfloat16):
                y = dispatch.linear(x, each)
                (found,) = torch.autograd.grad(y.sum(), x)
        assert y.dtype == torch.float32 and torch.equal(y, expected)
        assert torch.equal(found, gradient)


def test_views_that_are_not_what_lies_in_memory(weight):
    x, bias = torch.randn(3, 64), torch.randn(40)
    negative, zeros = torch._neg_view(x), torch._efficientzerotensor((3, 64))
    assert torch.equal(dispatch.linear(negative, weight), dispatch.linear(-x, weight))
    assert not dispatch.linear(zeros, weight).any()
    found = dispatch.linear(x, weight, torch._neg_view(bias))
    assert torch.equal(found, dispatch.linear(x, weight, -bias))


@pytest.mark.parametrize("kind", MAKERS)
def test_negative_views_among_the_parts_of_a_weight(kind):
    x = torch.randn(3, 64)
    weight = MAKERS[kind]((40, 64), 3, 32, 0)
    dispatch.linear(x, weight)
    parts = weight.to_tensors()
    for name, part in parts.items():
        if not part.is_floating_point():
            continue
        other = type(weight).from_tensors({**parts, name: torch._neg_view(part)}, weight.spec())
        expected = x @ other.dequantize().T
        torch.testing.assert_close(dispatch.linear(x, other), expected)
        kernel = choose(dispatch.request(x, other))
        torch.testing.assert_close(prepare(kernel, other).run(x), expected)


@pytest.mark.parametrize(
    "x, bias, sentence",
    [
        (X, torch.ones(40, device="meta"), "x is on cpu, and the bias on meta; move one of them"),
        (X.to("meta"), None, "x is on meta, and its weight on cpu; move one of them"),
        (X, torch.ones(40) + 1j, r"bias \(40,\) torch.complex64 does not fit"),
        (X, torch.ones(40).to_sparse(), r"bias \(40,\) torch.float32 torch.sparse_coo does not"),
        (X.to_sparse(), None, r"x \(2, 64\) torch.float32 torch.sparse_coo does not fit"),
        (X.tolist(), None, "x is a list; give a tensor"),
        (X.numpy(), None, "x is a ndarray; give a tensor"),
        (None, None, "x is a NoneType; give a tensor"),
        (X, [1.0] * 40, "the bias is a list; give a tensor"),
    ],
)
def test_arguments_that_are_none_of_a_product(weight, x, bias, sentence):
    with pytest.raises(ConfigError, match=sentence):
        dispatch.linear(x, weight, bias)


def test_every_part_of_a_weight_is_where_x_is(weight):
    parts = weight.to_tensors()
    for name in parts:
        mixed = [part.to("meta" if key == name else "cpu") for key, part in parts.items()]
        with pytest.raises(ConfigError, match="x is on cpu, and its weight on meta"):
            dispatch.multiply(X, mixed, None, dispatch.describe(weight))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_product_without_data(kind):
    weight = moved(MAKERS[kind]((40, 64), 3, 32, 0), "meta")
    y = dispatch.linear(torch.randn(2, 64, device="meta"), weight)
    assert y.is_meta and y.shape == (2, 40)


def _both(weight):
    """The product, and the same of the dense weight."""
    dense = weight.dequantize().double()
    return lambda x, bias=None: dispatch.linear(x, weight, bias), (
        lambda x, bias=0.0: x @ dense.T + bias
    )


def test_batches_by_vmap(weight):
    x = torch.randn(5, 2, 64, dtype=torch.float64)
    biases = torch.randn(5, 40, dtype=torch.float64)
    vmap = torch.func.vmap
    for batched in (
        lambda f: vmap(f)(x),
        lambda f: vmap(f, in_dims=1, out_dims=1)(x),
        lambda f: vmap(f)(x, biases),
        lambda f: vmap(f, in_dims=(None, 0))(x, biases),
        lambda f: vmap(f, in_dims=(0, None))(x, biases[0]),
        lambda f: vmap(vmap(f))(x),
        lambda f: vmap(vmap(f, in_dims=(0, None)))(x, biases),
    ):
        found, expected = map(batched, _both(weight))
        torch.testing.assert_close(found, expected)
    product = torch.func.vmap(lambda part: dispatch.multiply(X, [part], None, "{}"))
    with pytest.raises(ConfigError, match="call vmap over x or the bias alone"):
        product(x)


def test_derivatives_by_torch_func(weight):
    x, along = torch.randn(2, 3, 64, dtype=torch.float64)
    func = torch.func
    for derived in (
        lambda f: func.grad(_cubed(f))(x),
        lambda f: func.vjp(f, x)[1](along @ weight.dequantize().double().T)[0],
        lambda f: func.jacrev(f)(x[0]),
        lambda f: func.jacfwd(f)(x[0]),
        lambda f: func.hessian(_cubed(f))(x[0]),
        lambda f: func.vmap(func.grad(_cubed(f)))(x),
        lambda f: func.grad(lambda x: func.vmap(_cubed(f))(x).sum())(x),
        lambda f: func.grad(lambda bias: _cubed(lambda b: f(x, b))(bias))(along[0, :40]),
        lambda f: torch.autograd.functional.jacobian(lambda x: func.vmap(f)(x), x),
    ):
        found, expected = map(derived, _both(weight))
        torch.testing.assert_close(found, expected)


def test_importing_it_imports_no_compiler():
    """Every process of a cell imports it, and torch._dynamo takes a second and more.

    So does the process that `check_same_in_every_process` starts for each method.
    """
    told = "import sys, qbench.kernels.dispatch, qbench.checks.repetition"
    told += "; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
