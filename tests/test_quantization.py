"""quantize, save, load: exact both ways, and every wrong request is one sentence."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import qbench
from qbench import Scheme
from qbench.checkpoint.folder import bytes_on_disk
from qbench.contracts import BlockResult, trains
from qbench.errors import ConfigError, MethodError
from qbench.formats import Dense, Uniform
from qbench.models.blocks import linears
from qbench.registry import get_method
from samples import PROMPT, token_ids

TOKENS = token_ids(4, 32, vocabulary=256)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["rtn", "alternating", "gptq", "none"])
def test_a_saved_model_comes_back_bit_for_bit(tiny, tokenizer, tmp_path, method, tied):
    model = tiny(tie_word_embeddings=tied, attention_bias=True)
    before = model.model.embed_tokens.weight.clone()
    made = qbench.quantize(model, method, Scheme(3, 16), TOKENS, tokenizer=tokenizer)
    assert torch.equal(model.model.embed_tokens.weight, before), "embeddings stay in full precision"
    again = qbench.load(made.save(tmp_path / "saved"))
    assert torch.equal(again.model(PROMPT).logits, made.model(PROMPT).logits)
    assert again.bits_per_weight == made.bits_per_weight and again.manifest["method"] == method
    assert again.tokenizer("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    second = again.save(tmp_path / "again")
    files = ("model.safetensors",)
    assert all(
        (second / file).read_bytes() == (tmp_path / "saved" / file).read_bytes() for file in files
    )


@pytest.mark.parametrize("method", ["rtn", "greedy", "alternating", "gptq"])
def test_two_runs_give_the_same_bytes(tiny, tmp_path, method):
    folders = []
    for run in ("a", "b"):
        torch.manual_seed(hash(run) % 1000)
        folders.append(qbench.quantize(tiny(), method, Scheme(2, 16), TOKENS).save(tmp_path / run))
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second


@pytest.mark.parametrize(
    "method", ["awq", "omniquant", "flexround", "uniquanf", "unisvq", "gptq", "rtn"]
)
def test_a_model_in_bfloat16_quantizes_in_float32(tiny, method):
    """As the same model in float32, but for its position embeddings, which are rounded."""
    options = {"epochs": 1} if trains(get_method(method)) else {}
    half = tiny().bfloat16()
    whole = copy.deepcopy(half).float()
    scheme = Scheme(2, 16)
    made = qbench.quantize(half, get_method(method, **options), scheme, TOKENS)
    same = qbench.quantize(whole, get_method(method, **options), scheme, TOKENS)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    first = next(iter(made.weights))  # later layers see dequantized weights, rounded to bfloat16
    weight = made.weights[first].dequantize()
    expected = same.weights[first].dequantize()
    # A code that comes out otherwise moves its weight by a whole step; in training some do.
    assert (weight - expected).norm() <= 0.05 * expected.norm()


def test_the_bits_are_those_of_the_file(tiny, tmp_path):
    made = qbench.quantize(tiny(tie_word_embeddings=True), "rtn", Scheme(3, 32))
    plain = qbench.quantize(tiny(tie_word_embeddings=True), "none", Scheme(3, 32))
    folders = made.save(tmp_path / "packed"), plain.save(tmp_path / "dense")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    weights = sum(weight.shape[0] * weight.shape[1] for weight in made.weights.values())
    saved = plain.bits_per_weight["total"] - made.bits_per_weight["total"]
    assert plain.bits_per_weight["total"] == 32.0
    assert sizes[1] - sizes[0] == pytest.approx(
        weights * saved / 8, rel=0.1
    )  # headers differ a little
    assert [bytes_on_disk(folder) for folder in folders] == sizes


def test_the_bytes_on_disk_are_not_those_of_times_and_scores(tiny, tmp_path):
    folders = []
    for seconds in (0.5, 0.12345678901):
        made = qbench.quantize(tiny(), "gptq", Scheme(3, 32), TOKENS)
        made.manifest["costs"] = {"seconds": seconds, "peak_bytes": 1}
        made.log["block 0"] = {"seconds": seconds}
        folders.append(made.save(tmp_path / str(seconds)))
    sizes = [bytes_on_disk(folder) for folder in folders]
    assert sizes[0] == sizes[1] == (folders[0] / "model.safetensors").stat().st_size
    with (folders[0] / "README.md").open("a") as card:
        card.write("## Scores\n")
    assert bytes_on_disk(folders[0]) == sizes[0]


def test_texts_calibrate_too(tiny, tokenizer):
    texts = ["The quick brown fox jumps over the lazy dog. " * 40]
    made = qbench.quantize(tiny(), "gptq", Scheme(4, 16), texts, tokenizer=tokenizer)
    assert made.manifest["params"]["act_order"] is True


@pytest.mark.parametrize(("method", "bits"), [("gptq", 3), ("awq", 3), ("rtn", 2.5)])
def test_dropout_has_no_part_in_calibration(random_model, method, bits):
    """A model in training mode gives the weights of one that is not, and stays in that mode."""
    shape = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=259, n_positions=32)
    made = {}
    for training in (True, False):
        model = random_model(GPT2LMHeadModel, shape).train(training)
        model.lm_head.train(not training)  # a module's own flag is kept
        made[training] = qbench.quantize(model, method, Scheme.at(bits, 16), TOKENS).weights
        assert model.transformer.h[0].attn.attn_dropout.training is training
        assert model.lm_head.training is not training
    for name, weight in made[True].items():
        assert torch.equal(weight.dequantize(), made[False][name].dequantize()), name


def test_training_mode_comes_back_where_a_method_fails(tiny):
    class Broken(Folding):
        def quantize_block(self, block, inputs, targets, scheme):
            raise ValueError("no grid fits")

    model = tiny().train()
    with pytest.raises(MethodError, match="no grid fits"):
        qbench.quantize(model, Broken(), Scheme(4, 16), TOKENS)
    assert all(module.training for module in model.modules())


def test_wrong_requests_are_refused_before_any_work(tiny, tokenizer):
    model = tiny()
    before = model(PROMPT).logits
    with pytest.raises(ConfigError, match="method 'rtn' supports 2 to 8 bits, not bits=1"):
        qbench.quantize(model, "rtn", Scheme(1, 16))
    with pytest.raises(
        ConfigError,
        match="group_size=48 does not divide the 32 inputs of model.layers.0.self_attn.q_proj",
    ):
        qbench.quantize(model, "rtn", Scheme(4, 48))
    with pytest.raises(ConfigError, match="method 'greedy' has no symmetric form"):
        qbench.quantize(model, "greedy", Scheme(4, 16, symmetric=True))
    with pytest.raises(ConfigError, match="method 'gptq' needs calibration"):
        qbench.quantize(model, "gptq", Scheme(4, 16))
    with pytest.raises(ConfigError, match=r"a budget of 2.8 bits needs calibration"):
        qbench.quantize(model, "rtn", Scheme.at(2.8, 16))
    assert torch.equal(model(PROMPT).logits, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_layer(tiny, value):
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    with pytest.raises(
        MethodError, match="1 of the 2048 weights of model.layers.1.mlp.up_proj are NaN or infinite"
    ):
        qbench.quantize(model, "rtn", Scheme(4, 16))


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_weights_outside_the_blocks_that_are_not_finite_are_named(tiny, name):
    model = tiny()
    model.get_parameter(name).data.flatten()[3] = float("nan")
    with pytest.raises(MethodError, match=f"1 of the .* weights of {name} are NaN or infinite"):
        qbench.quantize(model, "rtn", Scheme(4, 16))


def test_a_method_that_fails_names_the_layer(tiny):
    class Broken:
        name, paper, format, bits, symmetric = "broken", "", "uniform", (1, 8), True

        def quantize_weight(self, weight, scheme):
            raise ValueError("no grid fits")

    with pytest.raises(
        MethodError, match=r"layer model.layers.0.self_attn.q_proj: ValueError: no grid fits"
    ):
        qbench.quantize(tiny(), Broken(), Scheme(4, 16))


@dataclass(frozen=True)
class Folding:
    """Rounds every layer; halves the first norm of a block and doubles the layers after it."""

    name, paper, format, bits, symmetric = "folding", "", "uniform", (2, 8), True

    def quantize_block(self, block, inputs, targets, scheme):
        assert torch.equal(inputs.run(block, inputs.full[0], 0), targets[0])
        layers, rtn = linears(block), qbench.get_method("rtn")
        factor = {
            name: 2.0 if name[-6:] in ("q_proj", "k_proj", "v_proj") else 1.0 for name in layers
        }
        weights = {
            name: rtn.quantize_weight(layer.weight * factor[name], scheme)
            for name, layer in layers.items()
        }
        return BlockResult(weights, {"input_layernorm.weight": block.input_layernorm.weight / 2})


def test_a_block_method_sees_both_streams_and_may_fold_into_norms(tiny, tmp_path):
    made = qbench.quantize(tiny(), Folding(), Scheme(4, 16), TOKENS)
    plain = qbench.quantize(tiny(), "rtn", Scheme(4, 16))
    torch.testing.assert_close(
        made.model(PROMPT).logits, plain.model(PROMPT).logits, rtol=1e-3, atol=1e-3
    )
    again = qbench.load(made.save(tmp_path / "saved"))
    assert torch.equal(again.model(PROMPT).logits, made.model(PROMPT).logits)


def test_a_block_method_that_leaves_a_layer_out(tiny):
    class Lazy(Folding):
        def quantize_block(self, block, inputs, targets, scheme):
            return BlockResult({}, {})

    with pytest.raises(
        MethodError, match="block model.layers.0: the method returned other layers than it was"
    ):
        qbench.quantize(tiny(), Lazy(), Scheme(4, 16), TOKENS)


NORM = "input_layernorm.weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"parameters": {NORM: torch.ones(1)}}, f"{NORM}' of shape .1,., and its own is .32,.;"),
        ({"parameters": {"norm": torch.ones(1)}}, "'norm' of shape .1,., and it has no such"),
        ({"parameters": {NORM: 1.0}}, f"parameters have 1.0 for '{NORM}'; give tensors"),
        ({"parameters": [torch.ones(32)]}, "parameters are a list; give a dict"),
        ({"weights": None}, "weights are a NoneType; give a dict"),
        ({"weights": {"mlp.up_proj": torch.ones(2)}}, "for 'mlp.up_proj'; give quantized weights"),
        ({"log": "went well"}, "entries of the log are a str; give a dict"),
        ({"log": {3: "x"}}, "entries of the log have the key 3; give names"),
        ({"log": {"loss": float("nan")}}, "have nan for 'loss' .*; give finite numbers"),
        ({"log": {"loss": torch.ones(2)}}, r"have tensor\(.* for 'loss' .*; give finite numbers"),
    ],
)
def test_a_block_result_of_another_kind_names_the_block(changes, message, tiny):
    class Odd(Folding):
        def quantize_block(self, block, inputs, targets, scheme):
            return replace(super().quantize_block(block, inputs, targets, scheme), **changes)

    with pytest.raises(
        MethodError, match=rf"(block|layer) model\.layers\.0: the method.*{message}"
    ):
        qbench.quantize(tiny(), Odd(), Scheme(4, 16), TOKENS)


def test_a_weight_of_another_shape_names_the_layer(tiny):
    class Small(Folding):
        quantize_block = None

        def quantize_weight(self, weight, scheme):
            return Dense(torch.ones(1, 1))

    with pytest.raises(MethodError, match=r"q_proj: the quantized weight is \(1, 1\), and the"):
        qbench.quantize(tiny(), Small(), Scheme(4, 16))


@pytest.mark.parametrize("factor", [1e-21, 1e21])
def test_weights_whose_squares_leave_float32_are_refused(tiny, factor):
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight.data.mul_(factor)
    with pytest.raises(MethodError, match="the largest weight of model.layers.1.mlp.up_proj is"):
        qbench.quantize(model, "rtn", Scheme(4, 16))


def test_weights_of_unusual_but_possible_size_are_quantized_as_others(tiny):
    """Up to what is refused, the relative error does not depend on the size."""

    def error(factor):
        weight = tiny().model.layers[1].mlp.up_proj.weight.detach() * factor
        found = qbench.get_method("rtn").quantize_weight(weight, Scheme(4, 16)).dequantize()
        return ((found - weight).norm() / weight.norm()).item()

    for factor in (1e-5, 1e-3, 1e10, 1e15):
        assert error(factor) == pytest.approx(error(1.0), rel=0.02)


class Squeezed(Uniform):
    """A uniform weight that says something else than what is stored."""

    def dequantize(self):
        return 1.1 * super().dequantize()


class Unknown(Dense):
    """A format that nothing reads."""

    format = "ours"


@dataclass(frozen=True)
class OwnFormat:
    kind: type = Squeezed
    name: ClassVar[str] = "own-format"
    paper: ClassVar[str] = "none"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False

    def quantize_weight(self, weight, scheme):
        if self.kind is Unknown:
            return Unknown(weight)
        made = get_method("rtn").quantize_weight(weight, scheme)
        return self.kind(**{field.name: getattr(made, field.name) for field in fields(made)})


@pytest.mark.parametrize("kind", [Squeezed, Unknown])
def test_a_weight_that_would_be_read_as_another_is_refused(tiny, kind):
    with pytest.raises(MethodError) as caught:
        qbench.quantize(tiny(), OwnFormat(kind), Scheme(3, 16))
    assert str(caught.value).startswith("layer model.layers.0.self_attn.q_proj: ")
    assert f"is a {kind.__name__}, which cannot be saved; return exactly one of" in str(
        caught.value
    )
    qbench.quantize(tiny(), OwnFormat(Uniform), Scheme(3, 16))
