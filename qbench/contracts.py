"""The contracts between methods, formats, kernels, tasks and the runner.

Importing this module imports no torch, and nothing here reads or writes files.

A method implements exactly one of four verbs, by what it needs to see:

- `quantize_weight(weight, scheme)` sees the weight alone (RTN, binary coding);
- `quantize_linear(weight, stats, scheme)` also sees second-order statistics of the layer's input
  (GPTQ);
- `quantize_block(block, inputs, targets, scheme)` sees a whole transformer block with its inputs
  and full-precision outputs (AWQ, OmniQuant, FlexRound, UniQuanF);
- `worker_settings(scheme)` is for another package, which quantizes the whole model's folder in an
  environment of its own. Its worker there receives what the verb returns
  (`qbench.external.contract.External`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from qbench.errors import ConfigError, MethodError
from qbench.scheme import AS_IT_IS as AS_IT_IS
from qbench.scheme import Scheme as Scheme  # it is a part of the contract

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.nn import Module

Verb = Literal["quantize_weight", "quantize_linear", "quantize_block", "worker_settings"]
VERBS: tuple[Verb, ...] = (
    "quantize_weight",
    "quantize_linear",
    "quantize_block",
    "worker_settings",
)
DECLARED = ("name", "paper", "format", "bits", "symmetric")  # ClassVars that every method has


@dataclass(frozen=True)
class LinearStats:
    """Second-order statistics of a linear layer's input over the calibration tokens.

    hessian: (in, in) float32, 2/count * sum over tokens of x x^T, the Hessian of the layer's mean
        squared output error with respect to any one row of its weight.
    count: number of tokens.
    """

    hessian: Tensor
    count: int


@runtime_checkable
class WeightFormat(Protocol):
    """A quantized weight, as methods return it, files store it, and kernels compute with it."""

    format: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""

    def dequantize(self) -> Tensor:
        """(out, in) float32: the weight that the stored numbers stand for."""

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors that are stored, by the name of the part; `bits_per_weight` counts these."""

    def spec(self) -> dict[str, Any]:
        """What `from_tensors` needs beside the tensors; JSON-able."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> WeightFormat:
        """The inverse of `to_tensors` and `spec`, exact."""


class Method(Protocol):
    """What every method declares; it is a frozen dataclass whose fields are its hyper-parameters.

    name: what the user types.
    paper: title, venue and arXiv id.
    format: the weight format it returns.
    bits: the supported bits, inclusive.
    symmetric: whether it honours `Scheme(symmetric=True)`.

    These are ClassVars; without that word they would be hyper-parameters.

    A method may also declare, as ClassVars: `exceptions`, a dict from the name of a contract check
    that it cannot keep by its nature to the reason; and `trains = True`, which makes it a
    `TrainedMethod`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    format: ClassVar[str]
    bits: ClassVar[tuple[int, int]]
    symmetric: ClassVar[bool]


class WeightMethod(Method, Protocol):
    """A method that looks at the weight alone."""

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> WeightFormat:
        """(out, in) floating point -> its quantized form. Must not change `weight`."""


class LinearMethod(Method, Protocol):
    """A method that looks at the weight and at the statistics of its inputs."""

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> WeightFormat:
        """(out, in) floating point, statistics of the (in,) inputs -> its quantized form."""


def hidden_states(output: Any) -> Tensor:
    """(batch, length, width): what a block returns, or the first entry of its tuple or list."""
    states: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return states


@dataclass(frozen=True)
class BlockInputs:
    """What one transformer block is called with on the calibration text, an entry per batch.

    quantized: hidden states (batch, length, width) that come out of the quantized blocks before it.
    full: those that come out of the full-precision blocks.
    arguments: the positional and keyword arguments of the block's call, without the hidden states.
    dtype: of the matrix products.
    progress: a method that takes long calls it with the part that is done, 0..1, and a word.
    logits: None but for the last block, where it maps the block's output to the model's logits
        (batch, length, vocabulary), and is differentiable.
    """

    quantized: list[Tensor]
    full: list[Tensor]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    dtype: Any = None
    progress: Callable[[float, str], None] = lambda fraction, text: None
    logits: Callable[[Tensor], Tensor] | None = None

    def run(
        self,
        block: Module,
        hidden: Tensor,
        batch: int,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The block's output (batch, length, width) for hidden states of this batch.

        parameters: values to use in place of the block's own, by name; gradients flow into them.
        """
        import torch

        args, kwargs = self.arguments[batch]
        low = self.dtype not in (None, torch.float32)
        # No cache: it would hold on to the low-precision copies of weights that have been replaced.
        with torch.autocast(hidden.device.type, self.dtype, enabled=low, cache_enabled=False):
            if parameters is None:
                output = block(hidden, *args, **kwargs)
            else:
                output = torch.func.functional_call(
                    block, dict(parameters), (hidden, *args), kwargs
                )
        return hidden_states(output)


@dataclass(frozen=True)
class BlockResult:
    """A quantized block.

    weights: the quantized weights of its linear layers, by their names within the block.
    parameters: new values, in full precision, of other parameters by their names, such as of a norm
        into which a scale was folded.
    log: how it went, JSON-able, kept in the record.

    MethodError where one of them is of another kind.
    """

    weights: Mapping[str, WeightFormat]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {"weights": "to_tensors", "parameters": "untyped_storage", "log": "__class__"}
        for part, attribute in kinds.items():
            entries = getattr(self, part)
            if not isinstance(entries, Mapping):
                raise _at_fault(part, f"are a {type(entries).__name__}; give a dict by name")
            for name, value in entries.items():
                if not isinstance(name, str):
                    raise _at_fault(part, f"have the key {name!r}; give names")
                if not hasattr(value, attribute):
                    allowed = "quantized weights" if part == "weights" else "tensors"
                    raise _at_fault(part, f"have {value!r} for {name!r}; give {allowed}")
        for name, value in self.log.items():
            try:
                json.dumps(value, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise _at_fault(
                    "log",
                    f"have {value!r} for {name!r} ({error}); give finite numbers, texts, lists "
                    "and dicts of Python's own",
                ) from None


def _at_fault(part: str, fault: str) -> MethodError:
    entries = "entries of the log" if part == "log" else part
    return MethodError(f"the method's result is at fault: its {entries} {fault}")


class BlockMethod(Method, Protocol):
    """A method that reconstructs a transformer block."""

    def quantize_block(
        self, block: Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Quantize all linear layers of `block`, and leave the block itself as it is.

        targets: an entry per batch, the full-precision block's output (batch, length, width) for
        `inputs.full`. scheme: it may have rules. `scheme.of_layer(name)` is what is asked of a
        layer; where it is None, the layer stays as it is and is not in the result.
        """


class TrainedMethod(BlockMethod, Protocol):
    """A block method that trains: it declares `trains`, and has these hyper-parameters.

    epochs: passes over the calibration batches. batch_size: sequences per step, which is also the
    size of the batches that `quantize_block` is given. The settings `trained` of a preset apply to
    all such methods. A method can derive from `qbench.calibration.reconstruction.Reconstruction`.
    """

    trains: ClassVar[Literal[True]]

    @property
    def epochs(self) -> int:
        """Passes over the calibration batches."""

    @property
    def batch_size(self) -> int:
        """Sequences per step."""

    def training_tokens(self, tokens: int) -> int:
        """How many tokens pass forward and backward in all epochs, of a text of `tokens` tokens."""


def trains(method: Any) -> bool:
    """Whether a method (class, instance or declaration) is a `TrainedMethod`."""
    return bool(getattr(method, "trains", False))


def verb_of(method: Any) -> Verb:
    """The verb that a method implements; ConfigError unless it is exactly one."""
    verbs = [verb for verb in VERBS if callable(getattr(method, verb, None))]
    if len(verbs) != 1:
        raise ConfigError(
            f"method {getattr(method, 'name', method)!r} implements {', '.join(verbs) or 'none'} "
            f"of {', '.join(VERBS)}; a method implements exactly one"
        )
    return verbs[0]


def calibrates(method: Any) -> bool:
    """Whether a method (class or instance) is given calibration tokens."""
    verb = verb_of(method)
    if verb == "worker_settings":
        return bool(method.calibrates)
    return verb != "quantize_weight"


def check_scheme(method: Any, scheme: Scheme) -> None:
    """ConfigError if the method (class, instance or declaration) does not support this scheme."""
    low, high = method.bits
    for bits in scheme.widths:
        if not low <= bits <= high:
            asked = f"bits={scheme.width}" if bits == scheme.bits else f"bits={bits} for a layer"
            raise ConfigError(f"method {method.name!r} supports {low} to {high} bits, not {asked}")
    if scheme.symmetric and not method.symmetric:
        raise ConfigError(
            f"method {method.name!r} has no symmetric form; "
            "leave out --symmetric or choose rtn or gptq"
        )
    elsewhere = getattr(method, "external", False) or hasattr(method, "worker_settings")
    if elsewhere and not scheme.is_plain:
        raise ConfigError(
            f"method {method.name!r} has its package quantize all layers alike; "
            "leave out --layers and --head-bits, and give whole --bits"
        )
