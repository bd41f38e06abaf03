"""Products by the CUDA kernels without a GPU: which kernel is chosen, and what it is given.

In the place of the kernels stand plain products with the derived layout.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from itertools import product as product_of
from types import SimpleNamespace

import pytest
import torch

from cuda_planes import dense
from qbench.errors import ConfigError
from qbench.kernels import sharing, tuned
from qbench.kernels.contract import Request
from qbench.kernels.gpu.cuda import choice, half_rows, launch, products, toolchain, tune
from qbench.kernels.gpu.cuda.choice import Choice, Gpu
from qbench.kernels.gpu.cuda.layout import CudaPlanes, derive
from qbench.kernels.gpu.cuda.products import Packed, product
from qbench.kernels.registry import get_kernel
from qbench.kernels.tuned import TunedFiles
from samples import binary_weight, normal, uniform_weight

H200 = Gpu("NVIDIA H200", 90, 132)
OTHERS = {80: Gpu("A100", 80, 108), 89: Gpu("L4", 89, 58), 100: Gpu("B200", 100, 148)}


@pytest.fixture(scope="module")
def planes():
    return derive(binary_weight(512, 1024, 3, 128))


@pytest.fixture(autouse=True)
def no_files(monkeypatch, tmp_path):
    """No tuned file of a real GPU decides here."""
    monkeypatch.setattr(choice, "TUNED", TunedFiles(tmp_path, choice._parsed))
    return tmp_path


@pytest.mark.parametrize(
    "rows, name",
    [
        (1, "bit_serial"),
        (2, "bit_serial"),
        (3, "byte_rows"),
        (8, "byte_rows"),
        (9, "half_rows"),
        (32, "half_rows"),
        (64, "half_rows"),
        (65, "wide_rows"),
        (512, "wide_rows"),
        (16384, "dequantize"),
    ],
)
def test_the_rows_decide_on_hopper(planes, rows, name):
    assert choice.choose(rows, planes, torch.bfloat16, H200).kernel == name


def test_many_outputs_take_the_wide_kernel_from_fewer_rows():
    planes = derive(binary_weight(8192, 256, 1, 128))
    assert choice.choose(64, planes, torch.bfloat16, H200).kernel == "wide_rows"


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("rows", [1, 4, 5, 64, 256, 4096])
def test_no_gpu_is_given_instructions_that_it_has_not(planes, architecture, rows):
    found = choice.choose(rows, planes, torch.float16, OTHERS[architecture]).kernel
    assert found != "wide_rows"
    if architecture >= 100:
        assert found != "bit_serial", "it would be emulated"
        assert rows > 8 or found == "byte_rows"
    if rows == 4096:
        assert found == "dequantize"


def test_the_files_that_are_shipped_can_be_read_and_served(monkeypatch):
    monkeypatch.undo()
    files = sorted(choice.TUNED.folder.glob("*.json"))
    assert [path.stem for path in files] == ["NVIDIA_H200"]
    weights = {}
    for name, chosen in choice.TUNED.of("NVIDIA H200").items():
        rows, _, k, bits = (int(name.split()[i][1:]) for i in (0, 1, 2, 4))
        if (k, bits) not in weights:
            weights[k, bits] = derive(binary_weight(16, k, bits, 128))
        assert choice.refusal(chosen.kernel, rows, weights[k, bits], H200) is None, name


def without_data(out, columns, bits, dtype, uniform, group=128):
    """The layout of a weight, as the choice sees it; group 0: per channel."""
    numbers = 2 if uniform else bits + 1
    chunks = -(-columns // 256)
    groups = -(-chunks * 256 // group) if group else 1
    words = torch.empty(-(-out // 16), chunks, bits, 32, 4, dtype=torch.int32, device="meta")
    params = torch.empty(-(-out // 16), groups, 8, numbers, 2, dtype=dtype, device="meta")
    return CudaPlanes(words, params, (out, columns), group, uniform, not uniform)


@pytest.mark.parametrize("gpu", [H200, *OTHERS.values()], ids=lambda gpu: gpu.name)
def test_what_was_not_measured_fits_every_gpu(monkeypatch, gpu):
    limits = gpu.architecture // 10 in (9, 10), half_rows.block_bytes(gpu.architecture)
    monkeypatch.setattr(half_rows, "_limits", lambda device: limits)
    kinds = product_of(((4096, 4096), (64, 256)), (1, 4, 6, 8), (torch.float16, torch.float32))
    for (shape, bits, dtype), uniform, group in product_of(kinds, (False, True), (0, 32, 128)):
        planes = without_data(*shape, bits, dtype, uniform, group)
        for rows in (1, 5, 9, 16, 33, 64, 100, 1000):
            chosen = choice.default(rows, planes, gpu)
            assert choice.fits(chosen, planes, gpu), (rows, planes.shape, bits, group, chosen)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("parameters", [torch.float16, torch.float32])
def test_no_launch_of_a_shipped_file_asks_for_more_than_the_gpu_has(
    monkeypatch, parameters, uniform
):
    monkeypatch.undo()
    h100 = Gpu("NVIDIA H100 80GB HBM3", 90, 132)
    refused = set()
    for gpu in (H200, h100):
        for name, measured in choice.TUNED.of("NVIDIA H200").items():
            rows, out, columns, bits = (int(name.split()[i][1:]) for i in (0, 1, 2, 4))
            planes = without_data(out, columns, bits, parameters, uniform)
            if not choice.fits(measured, planes, gpu):
                refused.add(name.rpartition(" ")[0])
            for dtype in (torch.bfloat16, torch.float16):
                chosen = choice.choose(rows, planes, dtype, gpu)
                assert choice.fits(chosen, planes, gpu), (name, chosen)
    # those of binary weights with 4-byte parameters, which would be refused at their launch
    wide = {"m8 n8192 k28672 binary b3 g128", "m16 n8192 k8192 binary b2 g128"}
    assert refused == (wide if parameters == torch.float32 and not uniform else set())


def test_every_candidate_serves_and_can_be_kept_in_a_file(planes, no_files):
    for rows in (1, 2, 4, 8, 16, 64, 256, 2048):
        candidates = choice.candidates(rows, planes, H200)
        assert len(set(candidates)) == len(candidates) > 0
        for candidate in candidates:
            assert choice.refusal(candidate.kernel, rows, planes, H200) is None
            kept = json.loads(json.dumps(candidate.fields()))
            assert choice._parsed(kept) == candidate


def test_what_was_measured_is_taken_before_the_default(planes, no_files):
    key = tuned.key_of(11, planes, torch.bfloat16)
    assert key == "m16 n512 k1024 binary b3 g128 bfloat16"
    measured = {key: {"kernel": "dequantize"}, tuned.key_of(1, planes, torch.float16): {
        "kernel": "wide_rows"}}  # fmt: skip
    path = choice.TUNED.path("NVIDIA H200")
    assert path == no_files / "NVIDIA_H200.json"
    path.write_text(json.dumps({"gpu": "NVIDIA H200", "configs": measured}))
    assert choice.choose(11, planes, torch.bfloat16, H200) == Choice("dequantize")
    assert choice.choose(17, planes, torch.bfloat16, H200).kernel == "half_rows", "another bucket"
    assert choice.choose(11, planes, torch.bfloat16, OTHERS[80]).kernel == "half_rows"
    assert choice.choose(1, planes, torch.float16, H200).kernel == "bit_serial", (
        "what the kernel refuses is not taken, whatever the file says"
    )
    other = derive(uniform_weight(512, 1024, 3, 256))
    assert choice.choose(11, other, torch.float16, H200) == Choice("dequantize"), "the nearest"
    small = derive(binary_weight(512, 1024, 3, 32))
    assert choice.choose(11, small, torch.bfloat16, H200).kernel == "half_rows"
    h100 = Gpu("NVIDIA H100 80GB HBM3", 90, 132)
    assert choice.choose(11, planes, torch.bfloat16, h100) == Choice("dequantize")
    smaller = Gpu("NVIDIA H100 PCIe", 90, 114)
    assert choice.choose(11, planes, torch.bfloat16, smaller).kernel == "half_rows"
    choice.TUNED.forget()
    path.write_text("{}")
    with pytest.raises(ConfigError, match="tune again or delete it"):
        choice.choose(1, planes, torch.bfloat16, H200)


class Plain:
    """A kernel's module that multiplies with the layout's weights."""

    def __init__(self, name):
        self.NAME = name

    def launch(self, x, planes, bias, y, config):
        assert x.is_contiguous() and y.is_contiguous() and x.ndim == y.ndim == 2
        exact = x.double() @ dense(planes).T
        if bias is not None:
            assert bias.dtype == torch.float32 and bias.is_contiguous()
            exact += bias
        y.copy_(exact)


class Preparing(Plain):
    """One that prepares x, and counts how often."""

    prepared = 0

    def preparation(self, planes):
        return self.NAME

    def prepare(self, x, planes):
        self.prepared += 1
        return x.clone()


@pytest.fixture
def plain(monkeypatch):
    """Plain products in the place of all kernels, on CPU tensors."""
    modules = {
        name: (Preparing if hasattr(module, "preparation") else Plain)(name)
        for name, module in choice.MODULES.items()
    }
    monkeypatch.setattr(products, "MODULES", modules)
    monkeypatch.setattr(products, "gpu_of", lambda device: H200)
    dequantize = SimpleNamespace(weight=lambda planes, dtype: dense(planes).to(dtype))
    monkeypatch.setattr(products, "dequantize", dequantize)
    return modules


@pytest.mark.parametrize("rows", [1, 3, 7, 40, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_all_rows_with_bias(plain, rows, dtype):
    weight = uniform_weight(19, 96, 3, 32)
    packed = Packed(derive(weight))
    x = normal(rows, 96).bfloat16()
    bias = normal(19, seed=1).to(dtype)
    expected = x.double() @ weight.dequantize().double().T + bias.double()
    y = product(x, packed, bias)
    assert y.dtype == torch.bfloat16 and y.shape == (rows, 19)
    assert (y.double() - expected).norm() <= 4e-3 * expected.norm()


def test_inputs_of_any_shape_and_strides(plain):
    weight = binary_weight(16, 64, 2, 32)
    packed = Packed(derive(weight))
    x = normal(2, 64, 3).half()
    y = product(x.transpose(1, 2), packed)
    expected = x.transpose(1, 2).double() @ weight.dequantize().double().T
    assert y.shape == (2, 3, 16) and (y.double() - expected).norm() <= 1e-3 * expected.norm()
    assert product(x.new_empty(0, 64), packed).shape == (0, 16)
    assert product(x[0, :, 0], packed).shape == (16,)
    for wrong in (x, x.transpose(1, 2).float()):
        with pytest.raises(ConfigError, match=r"expected \(\.\.\., 64\) in float16 or bfloat16"):
            product(wrong, packed)


def test_layers_that_read_the_same_x_prepare_it_once(plain):
    packed = [Packed(derive(binary_weight(16, 64, bits, 32))) for bits in (1, 2, 3)]
    x = normal(1, 1, 64).half()
    counts = plain["bit_serial"]
    with sharing.sharing():
        first = [product(x, weight) for weight in packed]
    assert counts.prepared == 1
    alone = [product(x, weight) for weight in packed]
    assert counts.prepared == 4
    assert all(map(torch.equal, first, alone))


def test_a_bias_in_half_precision_is_converted_once_and_never_stale(planes):
    packed = Packed(planes)
    bias = normal(512).half()
    first = packed.in_float32(bias)
    assert first.dtype == torch.float32 and packed.in_float32(bias) is first
    bias.add_(1)
    assert torch.equal(packed.in_float32(bias), bias.float())
    memory = bytearray(2 * 512)
    for seed in (3, 4):  # the second is at the address of the first
        bias.data = torch.frombuffer(memory, dtype=torch.half).copy_(normal(512, seed=seed))
        assert torch.equal(packed.in_float32(bias), bias.float())
    other = normal(512, seed=2).bfloat16()
    assert torch.equal(packed.in_float32(other), other.float())
    assert packed.in_float32(other.float()[::1]).dtype == torch.float32


def test_no_layout_is_derived_in_a_capture(monkeypatch):
    weight = binary_weight(16, 64, 2, 32)
    assert torch.equal(products.pack(weight).planes.words, derive(weight).words)
    monkeypatch.setattr(products, "_capturing", lambda tensor: True)
    with pytest.raises(ConfigError, match="run the model once before"):
        products.pack(weight)


def test_what_is_refused():
    kernel = products.KERNELS[0]
    request = Request("binary", 3, 48, (64, 96), "cuda", torch.float16, 1)
    assert "groups of 48" in products._refuses(request)
    assert products._refuses(request._replace(group_size=96)) is None
    assert products._refuses(request._replace(group_size=32)) is None
    assert "float32 is not one of" in kernel.refusal(request._replace(dtype=torch.float32))
    assert "lattice is not one of" in kernel.refusal(request._replace(format="lattice"))


@pytest.mark.parametrize(
    "capabilities, missing, reason",
    [
        ([], None, "there is no GPU"),
        ([(9, 0), (7, 5)], None, "a GPU here has compute capability 7.5, less than 8.0"),
        ([(9, 0)], "cuda-bindings is not installed", "cuda-bindings is not installed"),
        ([(8, 0), (12, 0)], None, None),
        (
            [(9, 0), (12, 1)],
            None,
            "NVRTC 12.8 does not compile for compute capability 12.1; "
            "install a newer nvidia-cuda-nvrtc",
        ),
    ],
)
def test_why_they_cannot_be_used(monkeypatch, capabilities, missing, reason):
    library = SimpleNamespace(
        nvrtcVersion=lambda: (0, 12, 8), nvrtcGetSupportedArchs=lambda: (0, [75, 80, 90, 120])
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(nvrtc=library))
    for name in ("nvrtc_version", "compiled_for"):
        monkeypatch.setattr(toolchain, name, getattr(toolchain, name).__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    monkeypatch.setattr(toolchain, "unavailable", lambda: missing)
    assert products.unavailable.__wrapped__() == reason


def test_the_fast_mode_is_taken_by_name_alone(plain, monkeypatch):
    """It prepares an x of its own, and multiplies with the kernel for products of bits."""
    fast = get_kernel("cuda-fast")
    assert fast in products.KERNELS and not fast.automatic
    request = Request("binary", 3, 32, (64, 96), "cuda", torch.float16, 4)
    monkeypatch.setattr(products, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for gpu, reason in ((H200, None), (OTHERS[100], "a GPU here, sm_100, only emulates")):
        monkeypatch.setattr(products, "gpu_of", lambda device, gpu=gpu: gpu)
        products.fast_unavailable.cache_clear()
        refused = fast.refusal(request)
        assert refused is None if reason is None else reason in refused
    products.fast_unavailable.cache_clear()
    assert "5 rows of x are not in 0..4" in fast.refusal(request._replace(rows=5))
    monkeypatch.setattr(products, "gpu_of", lambda device: H200)
    monkeypatch.setattr(products, "fast_bits", Preparing("fast_bits"))
    packed = Packed(derive(binary_weight(16, 64, 2, 32)))
    x = normal(2, 64).half()
    assert torch.equal(product(x, packed, fast=True), product(x, packed))
    assert products.fast_bits.prepared == plain["bit_serial"].prepared == 1


def test_the_declared_error_is_within_three_roundings_of_the_result():
    kernel = products.KERNELS[0]
    y = normal(100_000).double()
    for dtype in products.DTYPES:
        rounding = ((y.to(dtype).double() - y).norm() / y.norm()).item()
        assert 2.5 * rounding < kernel.bound(dtype) < 3 * rounding


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_tuned_without_a_gpu(planes):
    with pytest.raises(ConfigError, match="nothing can be tuned: there is no GPU"):
        tune.tune([planes], [1], torch.bfloat16)


def test_the_fastest_that_agrees_is_kept(plain, monkeypatch, no_files):
    """Of a wrong, a refused, an unsteady, a fast and a slow candidate."""
    weight = derive(binary_weight(16, 64, 2, 32))
    names = ("bit_serial", "half_rows", "wide_rows", "byte_rows", "dequantize")
    slow, wrong, refused, unsteady, fast = (Choice(name) for name in names)
    multiply = plain["byte_rows"].launch
    runs = count()

    def vary(x, planes, bias, y, config):
        multiply(x, planes, bias, y, config)
        y.add_(y * (0.008 * next(runs)))

    plain["half_rows"].launch = lambda x, planes, bias, y, config: y.fill_(1)

    def refuse(*arguments):
        raise ConfigError("too much shared memory")

    plain["wide_rows"].launch = refuse
    plain["byte_rows"].launch = vary
    monkeypatch.setattr(choice, "gpu_of", lambda device: H200)
    monkeypatch.setattr(choice, "default", lambda rows, planes, gpu: slow)
    monkeypatch.setattr(choice, "candidates", lambda *_: [slow, wrong, refused, unsteady, fast])
    monkeypatch.setattr(tune, "_copies", lambda planes: 2)
    monkeypatch.setattr(tune, "_seconds", lambda x, copies, chosen: 1.0 + (chosen is slow))
    assert tune.measure(weight, 3, torch.bfloat16) == [(1.0, fast), (2.0, slow)]
    assert next(runs) == 2, "the unsteady one agreed at first"

    wanted = []
    monkeypatch.setattr(toolchain, "compile_all", lambda jobs, architecture: wanted.extend(jobs))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    plain["byte_rows"].launch = multiply
    plain["half_rows"].launch = plain["wide_rows"].launch = lambda *_: planned.launch(
        (1, 1, 1), (32, 1, 1), ()
    )
    planned = launch.Function("half_rows.cu", "half_rows", {"PLANES": 2}, 0)
    tune.compile_candidates([(weight, 3)], torch.bfloat16)
    assert wanted == 2 * [("half_rows.cu", {"PLANES": 2})]

    for name in ("half_rows", "wide_rows", "byte_rows"):
        plain[name].launch = refuse
    monkeypatch.setattr(tune, "compile_candidates", lambda cases, dtype: None)
    monkeypatch.setattr(products, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    path = tune.tune([weight], [3, 5], torch.bfloat16)
    kept = json.loads(path.read_text())
    assert path == no_files / "NVIDIA_X.json" and kept["gpu"] == "NVIDIA X"
    name = "n16 k64 binary b2 g32 bfloat16"
    assert kept["configs"] == {f"m{m} {name}": {"kernel": "dequantize"} for m in (3, 8)}
    tune.tune([weight], [16], torch.bfloat16)
    assert len(json.loads(path.read_text())["configs"]) == 3, "what was measured before stays"
