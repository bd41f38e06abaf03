"""What layers cost, against plain computations on tiny models."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from families import FAMILIES, family_model
from qbench.commands.layers import _show
from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.experiment.layers import LayerRequest, flags_keeping, layers_of
from qbench.experiment.single import CalibrationWindows, quantize_model
from qbench.formats import bits_per_weight
from qbench.inspection.report import inspect
from qbench.layers.effects import Stored, Windows, bits_as_they_are, facts, measure
from qbench.layers.units import WHOLE, units
from qbench.models.blocks import quantizable, read_weight, write_weight
from qbench.quantization import load, quantize
from qbench.reports.layer_map import heat_map, interval, rows
from qbench.scheme import LayerRule
from samples import token_ids

COUNT, LENGTH = 5, 12


def windows(half: int = 0) -> Windows:
    clusters = [f"article-{place // 2}" for place in range(COUNT)]
    return Windows(token_ids(2 * COUNT, LENGTH)[half::2], clusters)


def stored(original, quantized) -> Stored:
    """What both models would take in files."""
    bits = {}
    for name, weight in quantized.weights.items():
        out, columns = weight.shape
        nbytes = sum(part.nbytes for part in weight.to_tensors().values())
        bits[name] = 8 * nbytes, out * columns
    return Stored(bits, bits_as_they_are(original))


def measured(original, quantized, keep: int = 2):
    return measure(
        original,
        quantized.model,
        stored(original, quantized),
        windows(0),
        windows(1),
        keep,
        2,
        lambda fraction, text: None,
    )


@torch.no_grad()
def plain_kl(original, other, tokens) -> float:
    """Mean KL over windows and positions, in float64, from whole forward passes."""
    p, q = (
        copy.deepcopy(model).double()(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        for model in (original, other)
    )
    return float((p.exp() * (p - q)).sum(-1).mean())


def with_weights(model, donor, names):
    """A copy of the model with some layers of the donor."""
    changed = copy.deepcopy(model)
    layers, donors = quantizable(changed), quantizable(donor)
    for name in names:
        write_weight(layers[name], read_weight(donors[name]))
    return changed


@pytest.mark.parametrize("family", ["llama", "gpt2-conv1d", "gemma3-mixed-masks"])
def test_a_layer_alone_and_restored_is_as_in_whole_passes(family):
    original = family_model(*FAMILIES[family])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(3, 16))
    before = [copy.deepcopy(model.state_dict()) for model in (original, quantized.model)]
    report = measured(original, quantized)
    tokens = windows().tokens
    total = plain_kl(original, quantized.model, tokens)
    assert report.total.value == pytest.approx(total, rel=2e-3)
    names = [effect.name for effect in report.effects]
    assert names == [name for name in quantizable(original)]
    for effect in report.effects:
        alone = with_weights(original, quantized.model, [effect.name])
        restored = with_weights(quantized.model, original, [effect.name])
        expected = total - plain_kl(original, restored, tokens)
        assert effect.alone.value == pytest.approx(
            plain_kl(original, alone, tokens), rel=2e-3, abs=1e-5
        )
        assert effect.gain.value == pytest.approx(expected, rel=2e-2, abs=2e-3 * total)
        assert effect.alone.low <= effect.alone.value <= effect.alone.high
        own, other = (read_weight(quantizable(m)[effect.name]) for m in (original, quantized.model))
        share = float((own - other).square().sum() / own.square().sum())
        if family == "llama":  # others have biases, which count
            assert effect.weight_error == pytest.approx(share, rel=1e-4)
        assert effect.output_error is not None and effect.output_error > 0
    for model, state in zip((original, quantized.model), before, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), "both models are left as they were"


def test_an_outputs_error_is_on_what_the_unquantized_model_gives():
    original = family_model(*FAMILIES["llama"])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(3, 16))
    report = measured(original, quantized)
    name = report.effects[-1].name
    layer, other = (quantizable(model)[name] for model in (original, quantized.model))
    inputs = []
    hook = layer.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        original(input_ids=windows().tokens)
        hook.remove()
        own, theirs = layer(inputs[0]), other(inputs[0])
    share = float((own - theirs).square().sum() / own.square().sum())
    assert report.effects[-1].output_error == pytest.approx(share, rel=1e-4)


def test_what_is_kept_is_measured_together_on_other_windows():
    original = family_model(*FAMILIES["llama"])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(2, 16))
    report = measured(original, quantized, keep=2)
    best = sorted(report.effects, key=lambda effect: -effect.gain.value)[:2]
    kept = report.kept
    assert set(kept.names) == {effect.name for effect in best}
    assert kept.summed == pytest.approx(sum(effect.gain.value for effect in best))
    tokens = windows(1).tokens
    before = plain_kl(original, quantized.model, tokens)
    after = plain_kl(original, with_weights(quantized.model, original, kept.names), tokens)
    assert kept.before == pytest.approx(before, rel=2e-3)
    assert kept.after == pytest.approx(after, rel=2e-3)
    assert kept.gain.value == pytest.approx(kept.before - kept.after)
    total = bits_per_weight(quantized.weights.values())["total"]
    sizes = {name: weight.shape[0] * weight.shape[1] for name, weight in quantized.weights.items()}
    share = sum(sizes[name] for name in kept.names) / sum(sizes.values())
    assert kept.bits_before == pytest.approx(total)
    # Layers of one width have as many bits as each other, up to their groups' parameters.
    assert kept.bits_after == pytest.approx(total * (1 - share) + 32 * share, rel=0.02)
    text = json.dumps(facts(report), allow_nan=False)
    assert json.loads(text)["kept"]["names"] == list(kept.names)
    assert measured(original, quantized, keep=0).kept is None


def test_a_layer_that_does_not_differ_is_no_part():
    original = family_model(*FAMILIES["llama"])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(3, 16))
    name = next(iter(quantized.weights))
    write_weight(quantizable(quantized.model)[name], read_weight(quantizable(original)[name]))
    assert name not in [effect.name for effect in measured(original, quantized).effects]


def test_blocks_are_the_parts_where_a_method_has_changed_more_than_weights():
    """A scale in a norm, as AWQ folds one: the layers behind it fit into this model alone."""
    original = family_model(*FAMILIES["llama"])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(3, 16))
    block = quantized.model.model.layers[1]
    with torch.no_grad():
        block.input_layernorm.weight *= 2
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(block.self_attn, name).weight /= 2
    report = measured(original, quantized, keep=1)
    assert [effect.kind for effect in report.effects] == [WHOLE, WHOLE]
    assert report.effects[0].output_error is None
    assert report.effects[0].bits == pytest.approx(report.kept.bits_before, rel=0.1)
    both = [effect.name for effect in report.effects]
    assert both == ["model.layers.0", "model.layers.1"]


def test_models_that_do_not_belong_together_are_refused(tiny):
    original = tiny()
    with pytest.raises(ConfigError, match="no layer of the two models differs"):
        units(original, copy.deepcopy(original))
    with pytest.raises(
        ConfigError, match="has 1 blocks in model.layers, and the unquantized one 2"
    ):
        units(original, tiny(num_hidden_layers=1))
    with pytest.raises(ConfigError, match=r"model\.layers\.0 has other parameters"):
        units(original, tiny(intermediate_size=32))


def test_an_interval_of_a_single_cluster_is_not_in_the_json():
    original = family_model(*FAMILIES["llama"])
    quantized = quantize(copy.deepcopy(original), "rtn", Scheme(3, 16))
    alike = dataclasses.replace(windows(), clusters=["a"] * COUNT)
    arguments = (stored(original, quantized), alike, alike, 0, 8, lambda fraction, text: None)
    report = measure(original, quantized.model, *arguments)
    assert facts(report)["total"]["low"] is None


def test_without_an_interval_no_layer_is_said_to_gain():
    """All windows of one article: what has no interval may be chance, and is drawn grey."""
    unknown = {"value": 0.12, "low": None, "high": None}
    effect = {"name": "layer", "block": 0, "kind": "q_proj", "alone": unknown, "gain": unknown}
    effect |= {"weight_error": 0.1, "output_error": None, "bits": None}
    (row,) = rows({"effects": [effect]})
    assert row[1] == row[2] == "0.120 [-∞, ∞]"
    figure = heat_map({"effects": [effect]}, "title")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == 2
    for axes in panels:
        assert "beyond chance" in axes.get_title(loc="left")
        assert np.ma.getmaskarray(axes.collections[0].get_array()).all()


@pytest.mark.parametrize(
    "ends, shown",
    [
        ((1.24, 1.226, 1.2488), "1.240 [1.226, 1.249]"),
        ((0.0, -0.0004, 0.0004), "0.00000 [-0.00040, 0.00040]"),
        ((123.4, 99.0, 147.8), "123 [99, 148]"),
        ((0.0, None, None), "0.000 [-∞, ∞]"),
    ],
)
def test_a_value_is_shown_within_its_interval(ends, shown):
    assert interval(dict(zip(("value", "low", "high"), ends, strict=True))) == shown


def test_a_total_without_an_interval_is_shown(capsys):
    report = {"total": {"value": 0.12345, "low": None, "high": None}, "effects": [], "kept": None}
    _show(report, "rtn")
    assert "rtn: KL 0.123 [-∞, ∞] nats, 0 parts" in capsys.readouterr().out


def quantized_at(folder, model, scheme):
    """Round to nearest, and measured bits per weight."""
    bits = quantize_model(
        str(model),
        "rtn",
        scheme,
        folder,
        settings={},
        data="mini",
        calibration=CalibrationWindows(4, 32, 0),
        device="cpu",
        dtype="auto",
        progress=lambda fraction, text: None,
    )
    return bits["total"]


def scheme_of(flags, **rest) -> Scheme:
    values = dict(rest)
    pairs = list(zip(flags[::2], flags[1::2], strict=True))
    rules = [LayerRule.parse(text) for flag, text in pairs if flag == "--layers"]
    heads = [int(text) for flag, text in pairs if flag == "--head-bits"]
    return Scheme(**values, rules=tuple(rules), head_bits=heads[0] if heads else None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rules", "head_bits"), [((), None), (("*.q_proj=skip", "*.down_proj=4"), 4)]
)
def test_a_run_with_the_flags_has_the_bits_that_are_promised(
    tiny_folder, tmp_path, dtype, rules, head_bits
):
    """Of a float32 model: what is skipped takes 32 bits, in whatever dtype it was measured."""
    made = Scheme(3, 32, rules=tuple(map(LayerRule.parse, rules)), head_bits=head_bits)
    bits = quantized_at(tmp_path / "made", tiny_folder, made)
    request = LayerRequest(str(tiny_folder), 2, 16, keep=2, data="mini", device="cpu", dtype=dtype)
    report = layers_of(tmp_path / "made", request, lambda fraction, text: None, lambda text: None)
    kept = report["kept"]
    total = load(tmp_path / "made").bits_per_weight["total"]
    assert kept["bits_before"] == bits == total
    assert kept["bits_before"] == inspect(tmp_path / "made").bits_per_weight["total"]
    scheme = scheme_of(report["flags"], bits=3, group_size=32)
    again = quantized_at(tmp_path / "again", tiny_folder, scheme)
    assert kept["bits_after"] == again > bits
    first, second = load(tmp_path / "made"), load(tmp_path / "again")
    for name, weight in second.weights.items():
        same = weight.dequantize().equal(first.weights[name].dequantize())
        assert same == (name not in kept["names"]), "the same model, but for what is kept"


def test_a_models_own_rules_stand_behind_what_is_kept():
    names = ["m.0.a.q", "m.0.b", "m.1.a.q", "m.1.b"]
    asked = Scheme(3, 32, rules=(LayerRule("m.0.b", 8), LayerRule("*.q", 4, "channel")))
    assert flags_keeping(["m.1.a.q"], asked, names) == [
        *("--layers", "m.1.a.q=skip", "--layers", "m.0.b=8", "--layers", "*.q=4gchannel")
    ]
    # A rule that has no layers left would be refused.
    assert flags_keeping(["m.0.*"], asked, names) == [
        *("--layers", "m.0.*=skip", "--layers", "*.q=4gchannel")
    ]
    assert flags_keeping(["m.1.b"], None, names) == ["--layers", "m.1.b=skip"]


@pytest.mark.slow
def test_the_command_writes_a_table_json_and_pictures(tiny_folder, command, tmp_path):
    args = ["layers", "--model", tiny_folder, "--method", "rtn", "--bits", 2, "--group-size", 32]
    args += ["--data", "mini", "--windows", 4, "--length", 32, "--dtype", "float32"]
    code, text, error = command(*args, "-o", tmp_path / "out")
    assert code == 0, error
    report = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert len(report["effects"]) == 14 and len(report["kept"]["names"]) == 3
    assert "as they are: KL" in text and "measured together on other windows" in text
    assert (tmp_path / "out" / "layers.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")

    saved = tmp_path / "saved"
    made = ["quantize", "--model", tiny_folder, "--method", "rtn", "--bits", 2, "--group-size", 32]
    assert command(*made, "-o", saved)[0] == 0
    code, _, error = command("layers", saved, "--data", "mini", "-o", tmp_path / "again")
    assert code == 2 and "does not say which model it was made of" in error
    same = ["layers", saved, "--model", tiny_folder, *args[9:]]
    code, _, error = command(*same, "-o", tmp_path / "again")
    assert code == 0, error
    again = json.loads((tmp_path / "again" / "layers.json").read_text())
    assert again["effects"] == report["effects"]


def test_there_must_be_something_to_measure(command):
    code, _, error = command("layers")
    assert code == 2 and "give a quantized folder, or --model MODEL" in error
