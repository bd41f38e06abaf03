"""What is timed on a GPU, as far as it can be said without one: roofs, peers, decoding."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.checkpoint.packed_linear import pack
from qbench.errors import QbenchError
from qbench.kernels.contract import Prepared
from qbench.latency import gpu, gpu_end_to_end, gpu_peers
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
        gpu_peers, "programs", lambda: {"right": right, "wrong": wrong, "absent": absent}
    )
    matrix = gpu_peers.random_matrix
    monkeypatch.setattr(gpu_peers, "random_matrix", lambda *args: matrix(*args[:3]))
    monkeypatch.setattr(gpu_peers, "graph_clock", lambda candidate: lambda copy: 1.0)
    candidates, missing = gpu_peers.peers(Shape(64, 256, 2))
    assert [candidate.name for candidate in candidates] == ["right bf16"]
    assert missing["wrong"].startswith("wrong bf16 is wrong: relative error 2")
    assert "a_program_that_is_not_here" in missing["absent"]
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
