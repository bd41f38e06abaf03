"""Numbers of a config that ask for tables or loops of any size are refused before they are made."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from qbench.errors import QbenchError, StoreError
from qbench.models.limits import MEMORY, SECONDS, built, refuse_implausible
from qbench.models.loading import load_model, load_skeleton
from qbench.models.source import find_model

LARGE = [
    ("gpt_neo", "max_position_embeddings", 100_000),  # a causal mask
    ("gptj", "n_positions", 2**26),  # a table of angles
    ("roberta", "max_position_embeddings", 2**30),  # numbers of positions
    ("marian", "max_position_embeddings", 2**24),  # a loop of Python
    ("llama", "vocab_size", 2**30),  # an embedding that the files do not have
    ("llama", "head_dim", 2**30),
    ("bart", "decoder_layers", 2**28),
]


# The interruption may fall into a hook of the test runner, which says so and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("family, key, value", LARGE)
@pytest.mark.parametrize(
    "load", [load_skeleton, lambda source: load_model(source, "float32")], ids=["plan", "weights"]
)
def test_a_number_that_asks_for_memory_or_time(tmp_path, family, key, value, load):
    config = AutoConfig.for_model(family, **{key: value}).to_dict() | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    tensors = {f"layer.{i}": torch.zeros(4, 4) for i in range(40)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(QbenchError):
        load(find_model(str(tmp_path)))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 1 << 30


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("text", ['{"rms_norm_eps": %s}', '{"text_config": {"rms_norm_eps": %s}}'])
def test_numbers_that_are_not_finite_are_refused(text, value):
    with pytest.raises(StoreError, match="config.json: rms_norm_eps is .* which is no number"):
        refuse_implausible(json.loads(text % value), {}, "config.json")
    refuse_implausible(json.loads(f'{{"time_step_limit": [0.0, {value}]}}'), {}, "config.json")


def test_building_ends_where_its_time_or_memory_does():
    def endless():
        while True:
            pass

    with pytest.raises(StoreError, match="config.json .* more than .* s of processor time"):
        built("config.json", endless)
    with pytest.raises(StoreError, match="more than 700 MB"):
        built("config.json", lambda: torch.zeros(MEMORY))
    with pytest.raises(StoreError, match="more than 700 MB"):
        built("config.json", lambda: bytearray(2 * MEMORY))
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_the_end_of_time_in_a_destructor_is_not_told_and_comes_again(monkeypatch):
    class Slow:
        def __del__(self):
            started = time.thread_time()
            while time.thread_time() < started + 2 * SECONDS:
                sum(range(10_000))  # the clock is of the user's time, and asking for it is not

    def endless():
        Slow()
        while True:
            pass

    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with pytest.raises(StoreError, match="more than .* s of processor time"):
        built("config.json", endless)
    assert not told and sys.unraisablehook == told.append


def test_other_errors_pass_and_other_threads_build_without_a_clock():
    with pytest.raises(RuntimeError, match="of its own"):
        built("config.json", lambda: (_ for _ in ()).throw(RuntimeError("of its own")))
    values = []
    thread = threading.Thread(target=lambda: values.append(built("config.json", lambda: 7)))
    thread.start()
    thread.join()
    assert values == [7]
