"""What is timed on a GPU, as far as it can be said without one: roofs, peers, decoding."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.checkpoint.packed_linear import pack
from qbench.errors import ConfigError, QbenchError
from qbench.kernels.contract import Kernel, Prepared
from qbench.kernels.samples import MAKERS
from qbench.kernels.sharing import shared
from qbench.latency import candidates, fusion, gpu, gpu_end_to_end, gpu_peers
from qbench.latency.candidates import kernel_candidate
from qbench.latency.decoding import Decoder
from qbench.latency.end_to_end import prompt_of
from qbench.latency.timing import Shape


def buffers(monkeypatch, rates, free):
    """Buffers that are read with these rates by their size, and so much free memory."""
    made = []

    def reader(nbytes):
        made.append(nbytes)
        return SimpleNamespace(nbytes=nbytes)

    monkeypatch.setattr(gpu, "_reader", reader)
    monkeypatch.setattr(gpu, "_rate", lambda candidate: rates[candidate.nbytes])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    return made


def test_the_roof_is_the_fastest_reading(monkeypatch):
    made = buffers(monkeypatch, {1: 3.0, 2: 5.0, 4: 4.0}, free=100)
    assert gpu.reader((1, 2, 4)).nbytes == 2 and made == [1, 2, 4]


def test_buffers_that_memory_has_no_room_for_are_left_out(monkeypatch):
    made = buffers(monkeypatch, {1: 3.0, 2: 5.0, 4: 9.0}, free=6)
    assert gpu.reader((1, 2, 4)).nbytes == 2 and made == [1, 2]


@pytest.mark.parametrize("bits", gpu_peers.GEMLITE_BITS)
def test_codes_are_a_grid_around_the_weight(bits):
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    codes, scale = gpu_peers._codes(weight, bits)
    assert codes.min() >= 0 and codes.max() == 2**bits - 1 and scale.shape == (6, 2)
    distance = (gpu_peers._meaning(codes, scale, bits) - weight).abs().unflatten(1, (2, 128))
    steps = 0.5 + 2 ** (bits - 1) / 256  # the scale is rounded to bfloat16
    assert (distance <= steps * scale.double()[..., None]).all()


def test_every_program_is_timed_or_has_its_reason(monkeypatch):
    known = gpu_peers.programs()
    assert {"torch int4", "gemlite int2", "humming int3", "bitsandbytes int8"} <= known.keys()

    def right(weight):
        return lambda: Prepared(lambda x: x @ weight.bfloat16().T, weight.nbytes), weight.double()

    def wrong(weight):
        return right(weight)[0], -weight.double()

    def absent(weight):
        import a_program_that_is_not_here

        return a_program_that_is_not_here

    monkeypatch.setattr(
        gpu_peers,
        "programs",
        lambda: {"right": right, "wrong": wrong, "absent": absent, "deadly": absent},
    )
    matrix = gpu_peers.random_matrix
    monkeypatch.setattr(gpu_peers, "random_matrix", lambda *args: matrix(*args[:3]))
    monkeypatch.setattr(gpu_peers, "graph_clock", lambda candidate: lambda copy: 1.0)
    found, missing = gpu_peers.peers(Shape(64, 256, 2), {"deadly": "it ends the process"})
    assert [candidate.name for candidate in found] == ["right bf16"]
    assert missing["wrong"].startswith("wrong bf16 is wrong: relative error 1.99")
    assert "a_program_that_is_not_here" in missing["absent"]
    assert missing["deadly"] == "it ends the process"
    assert "vllm" in missing["marlin"] and "1, 2, 4 and 8 bits" in missing["gemlite int3"]


@pytest.fixture(scope="module")
def twins(tiny):
    """(packed, dense): the same weights."""
    quantized = qbench.quantize(tiny(), "rtn", Scheme(3, 32))
    packed = tiny()
    pack(packed, quantized.weights)
    return packed, quantized.model


def test_decoding_writes_what_generate_does(twins):
    ids = prompt_of(9, 259)
    for model in twins:
        decoder = Decoder(model, ids, 8)
        expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for _ in range(2):  # the second time over what the first has left in the cache
            decoder.read()
            decoder.write()
            assert decoder.written.tolist() == expected[:, 9:].tolist()
        logits = model(ids).logits[:, -1]
        assert (decoder.logits - logits).norm() < 1e-5 * logits.norm()


class Event:
    """torch.cuda.Event by the processor's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000 * (end.time - self.time)


@pytest.fixture
def no_gpu_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 107)


@pytest.mark.usefixtures("no_gpu_needed")
def test_models_are_timed_in_turns(twins):
    packed, dense = twins
    turns = []
    makers = {"packed": lambda: packed, "dense": lambda: dense}
    ours, theirs = gpu_end_to_end.time_models(makers, 6, 4, 2, turns.append)
    assert turns[2:] == [
        f"round {turn}/2, {name}" for turn in (1, 2) for name in ("packed", "dense")
    ]
    assert ours.name == "packed" and ours.kernels and not theirs.kernels
    assert ours.error < 1e-5 and theirs.error is None
    for speed in (ours, theirs):
        median, least, most = speed.decode
        assert 0 < least <= median <= most and speed.first_token > 0
    assert theirs.peak_bytes == 7 + sum(tensor.nbytes for tensor in dense.state_dict().values()) + (
        sum(buffer.nbytes for buffer in dense.buffers())
    )
    assert ours.peak_bytes < theirs.peak_bytes


@pytest.mark.usefixtures("no_gpu_needed")
def test_a_model_with_other_logits_is_refused(twins, tiny):
    other = tiny(seed=1)
    makers = {"packed": lambda: other, "dense": lambda: twins[1]}
    with pytest.raises(QbenchError, match="packed is wrong: its logits are .* away from those"):
        gpu_end_to_end.time_models(makers, 6, 4, 1, lambda text: None)


def test_a_kernel_that_prepares_x_is_also_timed_with_x_prepared_once():
    prepared = []

    def run(x, parts, bias, description):
        def prepare():
            prepared.append(x)
            return x.double()

        return (shared(x, "double", prepare) @ parts[0].double().T).to(x.dtype)

    weight = MAKERS["dense"]((8, 32), 0, 0, 0)
    candidate = kernel_candidate(Kernel("mine", run), weight, torch.randn(2, 32), 16)
    [once] = candidates._with_shared_inputs(candidate)
    assert once.name == "dense mine 16b fp32, x shared" and once.error() < 1e-6
    prepared.clear()
    with once.scope():
        for copy in (0, 1, 0):
            once.run(copy)
    assert len(prepared) == 1
    plain = Kernel("mine", lambda x, parts, bias, description: x @ parts[0].T)
    candidate = kernel_candidate(plain, weight, torch.randn(2, 32), 16)
    assert list(candidates._with_shared_inputs(candidate)) == []


def test_only_norms_that_compute_the_same_are_fused(twins):
    class Shifted(torch.nn.Module):  # as Gemma's, which multiplies with 1 + weight
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((8,), 0.5))
            self.variance_epsilon = 1e-6

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (8,), 1 + self.weight, self.variance_epsilon)

    assert fusion.fused_norm(Shifted()) is None and fusion.fused_norm(torch.nn.Linear(2, 2)) is None
    model = twins[1]
    norm = model.model.norm
    x = torch.randn(3, 32)
    assert (fusion.fused_norm(norm)(x) - norm(x)).norm() < 1e-6 * x.norm()


def test_a_fused_model_is_as_it_was_afterwards(twins, monkeypatch):
    called = []

    def compiled(function):
        def run(*arguments):
            called.append(function.__name__)
            return function(*arguments)

        return run

    monkeypatch.setattr(fusion, "_compiled", compiled)
    model = twins[1]
    ids = prompt_of(5, 259)
    expected = model(ids).logits
    with fusion.fused(model):
        assert "forward" in vars(model.model.norm)
        logits = model(ids).logits
    assert (logits - expected).norm() < 1e-5 * expected.norm()
    assert called == ["apply_rotary_pos_emb"] * 2 and "forward" not in vars(model.model.norm)
    assert torch.equal(model(ids).logits, expected) and len(called) == 2


def test_what_torch_cannot_compile_is_called_as_it_is(monkeypatch):
    def fails(function, dynamic):
        def run(x):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    assert fusion._compiled(abs)(-3) == 3


def test_a_model_that_looks_back_less_is_refused():
    from transformers import MistralConfig, MistralForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    with pytest.raises(ConfigError, match="looks back 16 tokens in some layers; read and write"):
        Decoder(model, prompt_of(20, 64), 4)
