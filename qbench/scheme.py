"""What is asked of a method: bits per weight, group size, and exceptions for single layers.

A rule names layers by a glob that is matched with their full names (`*`, `?`, `[23]`, case
matters). Of several rules, such as `model.layers.0.*=8` and `*.down_proj=4g32`, the first one that
matches a layer counts. At 16 bits a layer stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from qbench.errors import ConfigError

AS_IT_IS = 16  # bits at which a layer is not quantized
SKIP = "skip"  # in the text of a rule, the same as 16 bits
NARROWEST = 2  # bits that a layer has at least where a budget is divided
LONG_RULES = 40  # letters of rules that a label tells in full
EXAMPLES = {"bits": "2, 3 or 4", "head_bits": "8", "group_size": "32, 64 or 128, or 'channel'"}
_BITS = re.compile(r"(\d+|skip)(?:g(\d+|channel))?")
Group = int | Literal["channel"] | None


@dataclass(frozen=True)
class LayerRule:
    """Bits of the layers whose full names a glob matches; 16 leaves them as they are.

    layers: the glob. group_size: weights per group; `channel` is one group per output channel, None
    the group size of the scheme. Raises ConfigError for bits or a group size out of range, and for
    a glob that is no text.
    """

    layers: str
    bits: int
    group_size: Group = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str):
            raise ConfigError(
                f"layers={self.layers!r} is no text; give a glob, such as '*.down_proj'"
            )
        try:
            Scheme(self.bits, None if self.group_size == "channel" else self.group_size)
        except ConfigError as error:
            raise ConfigError(f"layers {self.layers!r}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> LayerRule:
        """A rule from `GLOB=BITS[gGROUP]`.

        Such as `*.down_proj=4`, `*.k_proj=8g32` or `model.layers.0.*=skip`. ConfigError where the
        text is written otherwise.
        """
        layers, equals, asked = text.rpartition("=")
        match = _BITS.fullmatch(asked.strip())
        if not (equals and layers.strip() and match):
            raise ConfigError(
                f"--layers {text!r} is not GLOB=BITS[gGROUP]; for example "
                "--layers '*.down_proj=4g32', or =skip for layers that stay as they are"
            )
        bits, group = match.groups()
        size: Group = "channel" if group == "channel" else None
        if group and group != "channel":
            size = int(group)
        return cls(layers.strip(), AS_IT_IS if bits == SKIP else int(bits), size)

    @property
    def asked(self) -> str:
        """The part after the glob, such as `4g32`."""
        return str(self.bits) + ("" if self.group_size is None else f"g{self.group_size}")

    def __str__(self) -> str:
        """The rule in the form that `parse` reads."""
        return f"{self.layers}={self.asked}"


@dataclass(frozen=True)
class Scheme:
    """What is asked of a method.

    bits: per weight code, 1..16.
    group_size: weights per group along the inputs; None is one group per output channel, and so is
        "channel", which becomes None.
    symmetric: grids have no zero point.
    rules: exceptions for single layers.
    head_bits: bits of the model's head; None leaves the head as it is.
    budget: a fraction that the bits of the layers have on average; each layer gets a whole number,
        and one that matters more gets more (`qbench.allocation`). With a budget, `bits` is the next
        larger whole number.

    Raises ConfigError for bits or a group size out of range, and for rules or a budget that are
    none; `Scheme.at` makes a budget.

    Methods are called without `head_bits` and `budget`. One that sees a whole block asks `of_layer`
    what each of its layers is to have.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    rules: tuple[LayerRule, ...] = ()
    head_bits: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if str(self.group_size) == "channel":
            object.__setattr__(self, "group_size", None)
        for name in ("bits", "group_size", "head_bits"):
            given = getattr(self, name)
            if given is not None or name == "bits":
                object.__setattr__(self, name, _whole(name, given))
        for name, bits in (("bits", self.bits), ("head_bits", self.head_bits)):
            if bits is not None and not 1 <= bits <= AS_IT_IS:
                raise ConfigError(
                    f"{name}={bits} is outside 1..16; "
                    "choose the bits per weight code, such as 2, 3 or 4"
                )
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(
                f"group_size={self.group_size} is not positive; choose 32, 64, 128 or 'channel'"
            )
        if not isinstance(self.rules, tuple) or not all(
            isinstance(rule, LayerRule) for rule in self.rules
        ):
            raise ConfigError(
                f"rules={self.rules!r} is no tuple of LayerRule; give, for example, "
                "rules=(LayerRule('*.down_proj', 4),)"
            )
        if self.budget is not None and not _is_budget(self.budget, self.bits):
            raise ConfigError(
                f"budget={self.budget!r} with bits={self.bits} is no fraction of {NARROWEST} or "
                "more whose next larger whole number is bits; give `Scheme.at(2.8, group_size)`"
            )

    @classmethod
    def at(cls, width: float, group_size: int | None, **rest: Any) -> Scheme:
        """The scheme for bits that may be a fraction, such as 2.8, which becomes a budget.

        rest: the other fields. ConfigError for a fraction below 2, and as for the class.
        """
        if not math.isfinite(width):
            raise ConfigError(f"bits={width} is no finite number; choose, for example, 2, 2.8 or 3")
        if width == int(width):
            return cls(int(width), group_size, **rest)
        if width < NARROWEST:
            raise ConfigError(
                f"bits={width} is a fraction below {NARROWEST}, and no layer gets fewer than "
                f"{NARROWEST} bits where bits are divided; give {NARROWEST} or more"
            )
        return cls(math.ceil(width), group_size, budget=float(width), **rest)

    @property
    def width(self) -> float:
        """The bits that were asked for: the budget, if there is one."""
        return self.bits if self.budget is None else self.budget

    @property
    def is_plain(self) -> bool:
        """Whether it has no rules, no bits for the head and no budget."""
        return not self.rules and self.head_bits is None and self.budget is None

    @property
    def widths(self) -> tuple[int, ...]:
        """All bits that layers inside the blocks may get, ascending."""
        asked = {rule.bits for rule in self.rules} - {AS_IT_IS}
        asked |= {self.bits} if self.budget is None else {self.bits - 1, self.bits}
        return tuple(sorted(asked))

    def of_layer(self, name: str) -> Scheme | None:
        """The scheme of the layer of this name, without rules; None where it stays as it is."""
        own = Scheme(self.bits, self.group_size, self.symmetric)
        for rule in self.rules:
            if fnmatchcase(name, rule.layers):
                if rule.bits == AS_IT_IS:
                    return None
                group = self.group_size if rule.group_size is None else rule.group_size
                return replace(
                    own, bits=rule.bits, group_size=None if group == "channel" else group
                )
        return own

    def has_rule(self, name: str) -> bool:
        """Whether a rule names the layer."""
        return any(fnmatchcase(name, rule.layers) for rule in self.rules)

    def of_layers(self, names: Iterable[str]) -> dict[str, Scheme]:
        """The scheme of each of these layers, by name, without those that stay as they are."""
        asked = {}
        for name in names:
            scheme = self.of_layer(name)
            if scheme is not None:
                asked[name] = scheme
        return asked

    def of_block(self, names: Mapping[str, str]) -> Scheme:
        """The scheme for the layers of one block, whose rules have their names within the block.

        names: the full name of each layer, by its name within the block. Where all layers get the
        same scheme, the result has no rules; else its `bits` are the fewest that a layer gets.
        """
        asked = {own: self.of_layer(name) for own, name in names.items()}
        kinds = set(asked.values())
        if len(kinds) == 1:
            (only,) = kinds
            if only is not None:
                return only
        rules = []
        for own, scheme in asked.items():
            if scheme is None:
                rules.append(LayerRule(own, AS_IT_IS))
            else:
                rules.append(LayerRule(own, scheme.bits, scheme.group_size or "channel"))
        fewest = min(rule.bits for rule in rules)
        return Scheme(fewest, self.group_size, self.symmetric, tuple(rules))

    def check_rules(self, names: Iterable[str]) -> None:
        """ConfigError where a rule decides nothing for these layers, or all stay as they are.

        names: the full names of all linear layers inside the blocks.
        """
        left = list(names)
        example = left[-1] if left else ""
        for rule in self.rules:
            taken = [name for name in left if fnmatchcase(name, rule.layers)]
            if not taken:
                raise ConfigError(
                    f"--layers '{rule}' matches no linear layer inside the blocks that no rule "
                    f"before it matches; they have names such as {example} (the head has "
                    "--head-bits)"
                )
            left = [name for name in left if name not in taken]
            example = left[-1] if left else example
        if not left and all(rule.bits == AS_IT_IS for rule in self.rules):
            raise ConfigError(
                "the rules of --layers keep every layer as it is; leave some to be quantized"
            )
        if not left and self.budget is not None:
            raise ConfigError(
                f"--bits {self.budget} is divided between the layers that no rule of --layers "
                "names, and the rules name all of them; take out a rule, or give whole --bits"
            )

    def group_length(self, in_features: int, layer: str = "this layer", multiple: int = 1) -> int:
        """Weights per group for a layer of `in_features` inputs.

        layer: its name, for the message. multiple: of what it can be, for the message's advice.
        ConfigError where the group size does not divide the inputs.
        """
        group = in_features if self.group_size is None else self.group_size
        if in_features % group:
            usual = (16, 32, 64, 96, 128, 192, 256, 512)
            fits = [size for size in usual if in_features % size == 0 and size % multiple == 0]
            raise ConfigError(
                f"group_size={group} does not divide the {in_features} inputs of {layer}; "
                f"choose one of {', '.join(map(str, fits)) or in_features} or 'channel'"
            )
        return group

    def facts(self) -> dict[str, Any]:
        """JSON-able: bits, group_size and symmetric, and the other fields that are not empty."""
        facts = asdict(self)
        for name, nothing in (("rules", ()), ("head_bits", None), ("budget", None)):
            if facts[name] == nothing:
                del facts[name]
        if self.rules:
            facts["rules"] = [asdict(rule) for rule in self.rules]
        return facts

    @property
    def exceptions(self) -> str:
        """All rules and the bits of the head, such as `*.down_proj=4, head 8b`; may be empty."""
        head = [] if self.head_bits is None else [f"head {self.head_bits}b"]
        return ", ".join([*map(str, self.rules), *head])

    @property
    def told_rules(self) -> str:
        """The rules as labels tell them: `*.k_proj=8 *.down_proj=4`, or `+12 rules 1a2b3c4d`.

        Where they are long, these are their number and digits that tell them from others.
        """
        text = " ".join(map(str, self.rules))
        if len(text) <= LONG_RULES:
            return text
        number = "+1 rule" if len(self.rules) == 1 else f"+{len(self.rules)} rules"
        return f"{number} {hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def written_out(self) -> str:
        """The label with every rule: `3b g64, *.down_proj=4, head 8b`."""
        plain = str(replace(self, rules=(), head_bits=None))
        return ", ".join(filter(None, (plain, self.exceptions)))

    def __str__(self) -> str:
        """Label such as `3b g64`, `4b channel sym` or `2.8b g64 *.down_proj=4 head 8b`.

        It tells a scheme from every other one.
        """
        group = "channel" if self.group_size is None else f"g{self.group_size}"
        words = [f"{self.width}b {group}"]
        if self.symmetric:
            words.append("sym")
        if self.rules:
            words.append(self.told_rules)
        if self.head_bits is not None:
            words.append(f"head {self.head_bits}b")
        return " ".join(words)


def _is_budget(given: Any, bits: int) -> bool:
    """Whether it is a fraction that whole numbers up to `bits` have as their average."""
    return isinstance(given, float) and max(NARROWEST, bits - 1) < given < bits


def _whole(name: str, given: Any) -> int:
    """A field as an int, which may be one of another library; ConfigError where it is none."""
    if name == "bits" and isinstance(given, float) and given % 1 > 0:  # no NaN, nor infinity
        raise ConfigError(
            f"{name}={given} is a fraction; give a whole number, or divide a fraction "
            f"between the layers by `Scheme.at({given}, group_size)`"
        )
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise ConfigError(f"{name}={given!r} is no int; give one, such as {EXAMPLES[name]}")
    return int(given)
