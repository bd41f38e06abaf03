"""What is asked of single layers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from qbench.errors import ConfigError
from qbench.records import digest
from qbench.scheme import LayerRule, Scheme

NAMES = [
    f"model.layers.{index}.{name}"
    for index in range(2)
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]


def scheme(*rules, **rest):
    return Scheme(3, 64, rules=tuple(map(LayerRule.parse, rules)), **rest)


def test_the_first_rule_that_matches_counts():
    asked = scheme("model.layers.0.*=8", "*.down_proj=4g32", "*.up_proj=skip", "*.q_proj=5gchannel")
    widths = {
        name: own and (own.bits, own.group_size) for name in NAMES for own in [asked.of_layer(name)]
    }
    assert widths == {
        NAMES[0]: (8, 64),
        NAMES[1]: (8, 64),
        NAMES[2]: (8, 64),
        NAMES[3]: (5, None),
        NAMES[4]: None,
        NAMES[5]: (4, 32),
    }
    assert list(asked.of_layers(NAMES)) == [name for name in NAMES if name != NAMES[4]]
    assert asked.of_layer("elsewhere") == Scheme(3, 64)
    assert asked.widths == (3, 4, 5, 8)


def test_a_block_is_told_of_its_own_layers_alone():
    asked = scheme("*.0.*=8", "*.1.mlp.*=4gchannel", "*.1.*.q_proj=skip")
    first = {name.split(".", 3)[-1]: name for name in NAMES[:3]}
    second = {name.split(".", 3)[-1]: name for name in NAMES[3:]}
    assert asked.of_block(first) == Scheme(8, 64)
    mixed = asked.of_block(second)
    assert mixed.bits == 4 and mixed.head_bits is None
    for own, name in second.items():
        assert mixed.of_layer(own) == asked.of_layer(name)
    assert scheme("*.0.*=skip", "*=4").of_block(first).of_layers(first) == {}


@pytest.mark.parametrize(
    "text", ["*.down_proj", "=4", "*.down_proj=", "a=four", "a=4g", "a=4x32", "a=-4", "a=2.5"]
)
def test_a_rule_that_is_none(text):
    with pytest.raises(ConfigError, match=r"is not GLOB=BITS\[gGROUP\]"):
        LayerRule.parse(text)


@pytest.mark.parametrize("text", ["a=17", "a=0", "a=4g0"])
def test_a_rule_out_of_range(text):
    with pytest.raises(ConfigError, match="^layers .a.: .*(outside 1..16|not positive)"):
        LayerRule.parse(text)


@pytest.mark.parametrize(
    "rules, message",
    [
        (
            ("*.o_proj=4",),
            r"--layers '\*.o_proj=4' matches no linear layer .* such as model.layers",
        ),
        (
            ("*=4", "*.down_proj=8"),
            r"'\*.down_proj=8' matches no linear layer .* no rule before it",
        ),
        (("lm_head=8",), "the head has --head-bits"),
        (("*=skip",), "keep every layer as it is"),
    ],
)
def test_rules_that_say_nothing(rules, message):
    with pytest.raises(ConfigError, match=message):
        scheme(*rules).check_rules(NAMES)
    scheme("*.down_proj=skip", "*.0.*=4").check_rules(NAMES)


def test_a_budget_needs_layers_to_be_divided_between():
    asked = Scheme.at(2.5, 64, rules=(LayerRule("*", 4),))
    with pytest.raises(ConfigError, match="between the layers that no rule"):
        asked.check_rules(NAMES)
    with pytest.raises(ConfigError, match="a fraction below 2"):
        Scheme.at(1.5, 64)


def test_labels_tell_schemes_apart():
    assert str(scheme()) == "3b g64" == scheme().written_out
    assert str(scheme("*.q_proj=4")) == "3b g64 *.q_proj=4"
    asked = scheme("*.q_proj=skip", "*.up_proj=4g32", head_bits=8)
    assert str(asked) == "3b g64 *.q_proj=16 *.up_proj=4g32 head 8b"
    long = [f"model.layers.{index}.*=8" for index in range(3)]
    assert re.fullmatch(r"3b g64 \+3 rules [0-9a-f]{8}", str(scheme(*long)))
    assert str(scheme(*long)) != str(scheme(*long[::-1]))
    assert asked.written_out == "3b g64, *.q_proj=16, *.up_proj=4g32, head 8b"
    for rule in asked.rules:
        assert LayerRule.parse(str(rule)) == rule
    assert str(Scheme.at(2.8, None, symmetric=True)) == "2.8b channel sym"


def test_facts_are_those_of_older_versions_where_nothing_else_is_asked():
    plain = {"bits": 3, "group_size": 64, "symmetric": False}
    assert scheme().facts() == plain
    full = scheme("*.q_proj=8g32", head_bits=4)
    rules = [{"layers": "*.q_proj", "bits": 8, "group_size": 32}]
    assert json.loads(json.dumps(full.facts())) == plain | {"rules": rules, "head_bits": 4}
    kinds = [scheme(), scheme("*.q_proj=8"), scheme("*.q_proj=8g32"), scheme(head_bits=4)]
    kinds += [Scheme.at(2.8, 64), Scheme.at(2.9, 64), Scheme(3, 64, symmetric=True)]
    assert len({digest(kind.facts()) for kind in kinds}) == len(kinds)


def test_a_fraction_is_a_budget():
    asked = Scheme.at(2.8, 64)
    assert (asked.bits, asked.budget, asked.width, asked.widths) == (3, 2.8, 2.8, (2, 3))
    assert Scheme.at(3.0, 64) == Scheme(3, 64) and Scheme.at(3, 64).width == 3
    with pytest.raises(ConfigError, match="bits=2.8 is a fraction"):
        Scheme(2.8, 64)
    with pytest.raises(ConfigError, match="no finite number"):
        Scheme.at(float("nan"), 64)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"bits": float("nan")}, "bits=nan is no int; give one, such as 2, 3 or 4"),
        ({"bits": float("inf")}, "bits=inf is no int"),
        ({"bits": 3.0}, "bits=3.0 is no int"),
        ({"bits": "3"}, "bits='3' is no int"),
        ({"bits": True}, "bits=True is no int"),
        ({"bits": None}, "bits=None is no int"),
        ({"bits": 3, "head_bits": "8"}, "head_bits='8' is no int"),
        ({"bits": 3, "group_size": "64"}, "group_size='64' is no int; .* 128, or 'channel'"),
        ({"bits": 3, "group_size": 64.0}, "group_size=64.0 is no int"),
        ({"bits": 3, "group_size": 0.5}, "group_size=0.5 is no int"),
        ({"bits": 3, "group_size": True}, "group_size=True is no int"),
        ({"bits": 3, "group_size": 0}, "group_size=0 is not positive; choose .* or 'channel'"),
    ],
)
def test_what_is_no_whole_number_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Scheme(**given)
    with pytest.raises(ConfigError, match=sentence):
        LayerRule("*", **given) if "head_bits" not in given else Scheme(**given)


def test_numbers_of_other_libraries_and_the_word_for_a_channel_are_taken():
    asked = Scheme(np.int64(3), np.int32(64))
    assert asked == Scheme(3, 64) and json.dumps(asked.facts()) == json.dumps(scheme().facts())
    assert Scheme(3, "channel") == Scheme(3) and str(Scheme(3, "channel")) == "3b channel"


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"budget": 5.5}, "budget=5.5 with bits=3 is no fraction of 2 or more whose next larger"),
        ({"budget": 1.0}, "budget=1.0 with bits=3 is no fraction"),
        ({"budget": 3.0}, "budget=3.0 with bits=3 is no fraction"),
        ({"budget": float("nan")}, "budget=nan with bits=3 is no fraction"),
        ({"budget": "2.5"}, "budget='2.5' with bits=3 is no fraction"),
        ({"rules": ("*.k_proj=8",)}, "rules=('*.k_proj=8',) is no tuple of LayerRule; give, for"),
        ({"rules": "*.k_proj=8"}, "rules='*.k_proj=8' is no tuple of LayerRule"),
        ({"rules": None}, "rules=None is no tuple of LayerRule"),
    ],
)
def test_budgets_and_rules_that_are_none_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Scheme(3, 32, **given)
    assert Scheme(3, 32, budget=2.5) == Scheme.at(2.5, 32)
    with pytest.raises(ConfigError, match="layers=3 is no text; give a glob"):
        LayerRule(3, 8)
