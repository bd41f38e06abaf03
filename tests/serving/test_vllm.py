"""vLLM with our plug-in: `make test-vllm` runs this in an environment of its own.

The loaders are vLLM's own, at two ranks that are pretended; the engine is vLLM's on the processor.
"""

from __future__ import annotations

import gc
import shutil
from importlib.metadata import entry_points

import pytest
import torch
from safetensors.torch import load_file, save_file

import qbench
from qbench import Scheme
from qbench.checkpoint.config import quantization_entry, stored_tensors
from qbench.errors import ConfigError, StoreError
from qbench.files.shards import INDEX
from qbench.formats import Dense
from qbench.kernels.cpu import products
from qbench.kernels.dispatch import served
from qbench.scheme import LayerRule
from samples import binary_weight, lattice_weight, normal, uniform_weight

vllm = pytest.importorskip("vllm")
pytestmark = pytest.mark.filterwarnings("ignore")

HEADS, SIZE, HIDDEN = 4, 16, 64
KINDS = {
    "binary": lambda out, inputs, seed: binary_weight(out, inputs, 3, 16, seed=seed),
    "uniform": lambda out, inputs, seed: uniform_weight(out, inputs, 3, 16, seed=seed),
}
PROMPTS = ("The capital of France is", "def fibonacci(n):\n")
WRITTEN = 16


@pytest.fixture(scope="module")
def plugin():
    """What vLLM loads, by the entry point that it looks for."""
    (point,) = entry_points(group="vllm.general_plugins", name="qbench")
    point.load()()
    from vllm.model_executor.layers.quantization import get_quantization_config

    return get_quantization_config("qbench")


@pytest.fixture
def at_rank(monkeypatch):
    """`at_rank(rank, ranks)`: layers that are made from here on are those of this rank."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    def pretend(rank, ranks):
        for module in (linear, parameter):
            monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
            monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: ranks)

    with set_current_vllm_config(VllmConfig()):
        yield pretend


def config(plugin, weights, **packed):
    made = plugin.from_config(quantization_entry(weights, [], {}))
    made.packed_modules_mapping = {name: list(parts) for name, parts in packed.items()}
    return made


def load(layer, weight, *shard):
    """Hand a layer all tensors of one member as vLLM does, the guard among them."""
    for part, tensor in stored_tensors(weight).items():
        parameter = getattr(layer, part)
        parameter.weight_loader(parameter, tensor, *shard)


def product(layer, x):
    layer.quant_method.process_weights_after_loading(layer)
    return layer.quant_method.apply(layer, x)


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_q_k_and_v_go_to_their_ranks(plugin, at_rank, kind, kv_heads):
    from vllm.model_executor.layers.linear import QKVParallelLinear

    outs = {"q": HEADS * SIZE, "k": kv_heads * SIZE, "v": kv_heads * SIZE}
    weights = {}
    for seed, (name, out) in enumerate(outs.items()):
        weights[f"a.{name}_proj"] = KINDS[kind](out, HIDDEN, seed)
    settings = config(plugin, weights, qkv_proj=("q_proj", "k_proj", "v_proj"))
    x = normal(5, HIDDEN)
    for rank in range(2):
        at_rank(rank, 2)
        layer = QKVParallelLinear(
            HIDDEN,
            SIZE,
            HEADS,
            kv_heads,
            bias=False,
            params_dtype=torch.float32,
            quant_config=settings,
            prefix="a.qkv_proj",
        )
        expected = []
        for name in outs:
            weight = weights[f"a.{name}_proj"]
            load(layer, weight, name)
            heads = weight.dequantize().unflatten(0, (-1, SIZE))
            own = heads.chunk(2)[rank] if len(heads) > 1 else heads
            expected.append(own.flatten(0, 1))
        torch.testing.assert_close(product(layer, x), x @ torch.cat(expected).T)


@pytest.mark.parametrize("kind", KINDS)
def test_gate_and_up_are_one_layer_at_every_rank(plugin, at_rank, kind):
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    weights = {f"m.{name}_proj": KINDS[kind](96, HIDDEN, len(name)) for name in ("gate", "up")}
    settings = config(plugin, weights, gate_up_proj=("gate_proj", "up_proj"))
    x = normal(5, HIDDEN)
    for rank in range(2):
        at_rank(rank, 2)
        layer = MergedColumnParallelLinear(
            HIDDEN,
            [96, 96],
            bias=False,
            params_dtype=torch.float32,
            quant_config=settings,
            prefix="m.gate_up_proj",
        )
        rows = []
        for shard, weight in enumerate(weights.values()):
            load(layer, weight, shard)
            rows.append(weight.dequantize().chunk(2)[rank])
        torch.testing.assert_close(product(layer, x), x @ torch.cat(rows).T)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_a_row_parallel_layer_add_up(plugin, at_rank, kind):
    from vllm.model_executor.layers.linear import RowParallelLinear

    weight = KINDS[kind](24, HIDDEN, 0)
    settings = config(plugin, {"m.down_proj": weight})
    x = normal(5, HIDDEN)
    total = torch.zeros(5, 24)
    for rank, mine in enumerate(x.chunk(2, 1)):
        at_rank(rank, 2)
        layer = RowParallelLinear(
            HIDDEN,
            24,
            bias=False,
            params_dtype=torch.float32,
            quant_config=settings,
            prefix="m.down_proj",
        )
        load(layer, weight)
        total += product(layer, mine.contiguous())
    torch.testing.assert_close(total, x @ weight.dequantize().T)


def test_what_is_not_quantized_is_vllm_s_own(plugin, at_rank):
    from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

    at_rank(0, 1)
    settings = config(plugin, {"m.down_proj": KINDS["binary"](24, HIDDEN, 0)})
    layer = RowParallelLinear(HIDDEN, 24, quant_config=settings, prefix="m.other")
    assert isinstance(layer.quant_method, UnquantizedLinearMethod)


def test_a_layer_that_is_no_linear_one_is_refused(plugin):
    settings = config(plugin, {"m.experts.0.up": KINDS["binary"](24, HIDDEN, 0)})
    with pytest.raises(ConfigError, match=r"m\.experts\.0\.up is quantized, and vLLM computes it"):
        settings.get_quant_method(torch.nn.Module(), "m.experts")
    assert settings.get_quant_method(torch.nn.Module(), "m.attention") is None


def test_a_lattice_is_refused(plugin):
    with pytest.raises(ConfigError, match="stored as 'lattice', and vLLM serves only"):
        plugin.from_config(quantization_entry({"a": lattice_weight(4, 32, 2)}, [], {}))


def test_layers_left_dense_are_vllm_s_own(plugin, at_rank):
    from vllm.model_executor.layers.linear import RowParallelLinear, UnquantizedLinearMethod

    at_rank(0, 1)
    weights = {
        "m.down_proj": Dense(normal(24, HIDDEN)),
        "a.q_proj": Dense(normal(24, HIDDEN)),
        "a.k_proj": KINDS["binary"](24, HIDDEN, 0),
    }
    settings = config(plugin, weights, qk_proj=("q_proj", "k_proj"))
    layer = RowParallelLinear(HIDDEN, 24, quant_config=settings, prefix="m.down_proj")
    assert isinstance(layer.quant_method, UnquantizedLinearMethod)
    with pytest.raises(ConfigError, match=r"a\.k_proj is quantized and a\.q_proj is not; quantize"):
        settings.get_quant_method(layer, "a.qk_proj")


# The engine


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 at 3 bits; uniform, scales in half precision."""
    folder = tmp_path_factory.mktemp("served") / "smollm2"
    return qbench.quantize("smollm2-135m", "rtn", Scheme(3, 64)).save(folder)


@pytest.fixture(scope="module")
def smollm2_binary(tmp_path_factory):
    """The same in binary coding, whose scales are integers."""
    folder = tmp_path_factory.mktemp("served") / "smollm2-binary"
    method = qbench.get_method("alternating", rounds=2, scale_bits=6)
    return qbench.quantize("smollm2-135m", method, Scheme(3, 64)).save(folder)


@pytest.fixture(scope="module")
def tiny_binary(tiny, tokenizer, tmp_path_factory):
    """A tiny Llama in binary coding, whose scales are integers."""
    model = tiny(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    method = qbench.get_method("alternating", scale_bits=6)
    quantized = qbench.quantize(model, method, Scheme(3, 32))
    quantized.tokenizer = tokenizer
    return quantized.save(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def tiny_skipped(tiny, tokenizer, tmp_path_factory):
    """A tiny Llama whose first block, and one layer of the second, are in full precision."""
    model = tiny(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rules = tuple(map(LayerRule.parse, ("*.layers.0.*=skip", "*.layers.1.*.down_proj=skip")))
    quantized = qbench.quantize(model, "rtn", Scheme(3, 32, rules=rules))
    quantized.tokenizer = tokenizer
    return quantized.save(tmp_path_factory.mktemp("served") / "skipped")


def written_by_transformers(folder, prompts):
    loaded = qbench.load(folder, "float32")
    texts = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        written = loaded.model.generate(
            tokens, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False
        )
        texts.append(written[0, tokens.shape[1] :].tolist())
    return texts


def written_by_vllm(engine, prompts):
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    settings = SamplingParams(temperature=0, max_tokens=WRITTEN, ignore_eos=True)
    answers = engine.generate(asked, settings, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


@pytest.fixture
def engine(plugin):
    """`engine(folder)`: vLLM on the processor, in this process, with nothing said of qbench."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    made = []

    def start(folder):
        llm = LLM(
            str(folder), dtype="float32", max_model_len=256, max_num_seqs=2, enforce_eager=True
        )
        made.append(llm)
        return llm

    yield start
    made.clear()
    gc.collect()
    cleanup_dist_env_and_memory()


def held(model):
    """Bytes of tensors in the quantized layers: in their parts, and elsewhere but in biases."""
    parts = others = 0
    for layer in model.modules():
        names = getattr(layer, "qbench_parts", None)
        if names is None:
            continue
        tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
        tensors |= {k: v for k, v in vars(layer).items() if isinstance(v, torch.Tensor)}
        for name, tensor in tensors.items():
            if name in names:
                parts += tensor.nbytes
            elif name != "bias":
                others += tensor.nbytes
    return parts, others


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_binary", "smollm2", "smollm2_binary"])
def test_vllm_writes_what_transformers_writes_from_packed_weights(name, request, engine):
    folder = request.getfixturevalue(name)
    loaded = qbench.load(folder, "float32")
    prompts = [loaded.tokenizer(prompt).input_ids for prompt in PROMPTS]
    stored = 0
    for weight in loaded.weights.values():
        stored += sum(part.nbytes for part in weight.to_tensors().values())
    dense = sum(4 * out * inputs for out, inputs in (w.shape for w in loaded.weights.values()))
    del loaded
    expected = written_by_transformers(folder, prompts)
    gc.collect()  # with it go the layouts of its kernels
    before = layouts()
    llm = engine(folder)
    served(clear=True)
    assert written_by_vllm(llm, prompts) == expected
    assert served().keys() == {"cpu-binary"}
    ((parts, others),) = llm.apply_model(held)
    assert (parts, others) == (stored, 0)
    # what the kernels read instead: the same bits in another order, scales in half precision
    assert 0 < layouts() - before < dense / 5


@pytest.mark.slow
def test_layers_that_were_skipped_are_served_dense(tiny_skipped, engine):
    from vllm import SamplingParams

    prompt = torch.arange(20)
    model = qbench.load(tiny_skipped, "float32", packed=False).model
    expected = model(prompt[None]).logits[0, :-1].log_softmax(-1).detach()
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=5)
    (answer,) = engine(tiny_skipped).generate([{"prompt_token_ids": prompt.tolist()}], asked)
    for at, found in zip(expected, answer.prompt_logprobs[1:], strict=True):
        for token, given in found.items():
            assert abs(given.logprob - at[token]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.alpha_span"])
def test_a_tensor_that_is_missing_ends_in_a_sentence(tiny_binary, engine, tmp_path, name):
    folder = shutil.copytree(tiny_binary, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / INDEX).unlink()
    with pytest.raises(StoreError, match=name):
        engine(folder)


@pytest.mark.slow
def test_scores_through_vllm_are_those_of_transformers(tiny_binary, plugin, command):
    """As a user asks, so vLLM compiles the model, with the products as operators in its graph."""
    asked = ["--data", "mini", "--dtype", "float32", "--tasks", "wikitext,arc_easy"]
    for limit in ("wikitext.limit=2", "wikitext.length=64", "arc_easy.limit=4"):
        asked += ["--set", limit]
    done = command("eval", tiny_binary, *asked, "--through", "vllm", "--parity")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("parity")]
    assert [line.split()[1] for line in lines] == ["mini-text", "mini-arc_easy"]
    for line in lines:
        numbers = dict(part.split("=") for part in line.split() if "=" in part)
        assert float(numbers["largest"]) < 1e-3
        assert numbers.get("flips", "0/4") == "0/4"


def layouts():
    """Bytes of all weights in the order in which the kernels of the processor read them."""
    known = products._layouts._known.values()
    return sum(layout.memory.nbytes for of in list(known) for _, layout in of.values())
