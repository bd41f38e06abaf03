"""What is asked of a method: bits per weight, group size, and what single layers have instead.

A rule names layers by a glob over their full names (`*`, `?`, `[23]`, case matters), and the first
one that matches counts: `model.layers.0.*=8` before `*.down_proj=4g32`. At 16 bits a layer stays as
it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from qbench.errors import ConfigError

AS_IT_IS = 16  # bits at which a layer is not quantized
SKIP = "skip"  # another word for that
NARROWEST = 2  # bits of a layer where a fraction is divided
_BITS = re.compile(r"(\d+|skip)(?:g(\d+|channel))?")
Group = int | Literal["channel"] | None


@dataclass(frozen=True)
class LayerRule:
    """Bits of the layers whose full names a glob matches; 16 leaves them as they are.

    group_size: `channel` for one group per output channel, None for the scheme's. Raises
    ConfigError for bits or a group size out of range.
    """

    layers: str
    bits: int
    group_size: Group = None

    def __post_init__(self) -> None:
        try:
            Scheme(self.bits, None if self.group_size == "channel" else self.group_size)
        except ConfigError as error:
            raise ConfigError(f"layers {self.layers!r}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> LayerRule:
        """`GLOB=BITS[gGROUP]`, such as `*.down_proj=4`, `*.k_proj=8g32`, `model.layers.0.*=skip`.

        ConfigError where it is written otherwise.
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
        """What stands behind the glob, such as `4g32`."""
        return str(self.bits) + ("" if self.group_size is None else f"g{self.group_size}")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.layers}={self.asked}"


@dataclass(frozen=True)
class Scheme:
    """What is asked of a method.

    bits: per weight code, 1..16. group_size: weights per group along the inputs; None is one group
    per output channel. symmetric: grids without a zero point. rules: what single layers have
    instead. head_bits: of the model's head, which is not quantized where it is None. budget: a
    fraction that the bits of the layers average, each a whole number by how much it matters
    (`qbench.allocation`); `bits` is then the next whole number. Raises ConfigError for bits or a
    group size out of range.

    A method is given a scheme without head and budget; one that sees a whole block asks `of_layer`.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    rules: tuple[LayerRule, ...] = ()
    head_bits: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, bits in (("bits", self.bits), ("head_bits", self.head_bits)):
            if bits is not None and bits != int(bits):
                raise ConfigError(
                    f"{name}={bits} is a fraction; `Scheme.at({bits}, group_size)` divides it "
                    "between the layers, and nothing else may be one"
                )
            if bits is not None and not 1 <= bits <= AS_IT_IS:
                raise ConfigError(
                    f"{name}={bits} is outside 1..16; "
                    "choose the bits per weight code, such as 2, 3 or 4"
                )
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(
                f"group_size={self.group_size} is not positive; choose 32, 64, 128 or 'channel'"
            )

    @classmethod
    def at(cls, width: float, group_size: int | None, **rest: Any) -> Scheme:
        """The scheme of a width that may be a fraction, such as 2.8. rest: its other fields."""
        if not math.isfinite(width):
            raise ConfigError(f"bits={width} is no finite number; choose such as 2, 2.8 or 3")
        if width == int(width):
            return cls(int(width), group_size, **rest)
        if width < NARROWEST:
            raise ConfigError(
                f"bits={width} is a fraction below {NARROWEST}, and layers get {NARROWEST} bits or "
                f"more where they get unlike ones; give {NARROWEST} or more"
            )
        return cls(math.ceil(width), group_size, budget=float(width), **rest)

    @property
    def width(self) -> float:
        """The bits that were asked for: of a budget the fraction."""
        return self.bits if self.budget is None else self.budget

    @property
    def is_plain(self) -> bool:
        """Whether all layers are asked the same, and nothing else is asked."""
        return not self.rules and self.head_bits is None and self.budget is None

    @property
    def widths(self) -> tuple[int, ...]:
        """All bits that some layer inside the blocks may be asked for, ascending."""
        asked = {rule.bits for rule in self.rules} - {AS_IT_IS}
        asked |= {self.bits} if self.budget is None else {self.bits - 1, self.bits}
        return tuple(sorted(asked))

    def of_layer(self, name: str) -> Scheme | None:
        """What is asked of the layer of this name alone; None where it stays as it is."""
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
        """What is asked of each of these layers by itself, without those that stay as they are."""
        asked = {}
        for name in names:
            scheme = self.of_layer(name)
            if scheme is not None:
                asked[name] = scheme
        return asked

    def of_block(self, names: Mapping[str, str]) -> Scheme:
        """The scheme for some layers by names of their own. names: by these, the names here.

        Where all of them are asked the same, it has no rules; else `bits` are the fewest.
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
        """ConfigError where a rule says nothing of any of these layers, or all stay as they are.

        names: of all linear layers inside the blocks.
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
                "names, and the rules name all; leave some of them"
            )

    def group_length(self, in_features: int, layer: str = "this layer") -> int:
        """Weights per group for a layer of `in_features` inputs.

        layer: its name, for the message. Raises ConfigError where the group size does not divide.
        """
        group = in_features if self.group_size is None else self.group_size
        if in_features % group:
            usual = (16, 32, 64, 96, 128, 192, 256, 512)
            fitting = [str(size) for size in usual if in_features % size == 0]
            raise ConfigError(
                f"group_size={group} does not divide the {in_features} inputs of {layer}; "
                f"choose one of {', '.join(fitting) or in_features} or 'channel'"
            )
        return group

    def facts(self) -> dict[str, Any]:
        """JSON-able: the first three fields, and of the others those that say something."""
        facts = asdict(self)
        for name, nothing in (("rules", ()), ("head_bits", None), ("budget", None)):
            if facts[name] == nothing:
                del facts[name]
        if self.rules:
            facts["rules"] = [asdict(rule) for rule in self.rules]
        return facts

    @property
    def exceptions(self) -> str:
        """Every rule, and the head: `*.down_proj=4, head 8b`; empty where there are none."""
        head = [] if self.head_bits is None else [f"head {self.head_bits}b"]
        return ", ".join([*map(str, self.rules), *head])

    @property
    def written_out(self) -> str:
        """The label with every rule: `3b g64, *.down_proj=4, head 8b`."""
        plain = str(replace(self, rules=(), head_bits=None))
        return ", ".join(filter(None, (plain, self.exceptions)))

    def __str__(self) -> str:
        """Short label such as `3b g64`, `4b channel sym` or `2.8b g64 +2 rules head 8b`."""
        group = "channel" if self.group_size is None else f"g{self.group_size}"
        words = [f"{self.width}b {group}"]
        if self.symmetric:
            words.append("sym")
        if self.rules:
            words.append(f"+{len(self.rules)} rule" + "s" * (len(self.rules) > 1))
        if self.head_bits is not None:
            words.append(f"head {self.head_bits}b")
        return " ".join(words)
