"""The tour: a method is called on many weights and in whole tiny models, and every call is watched.

The checks of side effects and of results all read the same tour, so that it is paid for once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from qbench.checks.arguments import Arguments, tensors_of
from qbench.checks.samples import (
    CASES,
    bits_of,
    hyper_parameters,
    sample_arguments,
    sample_inputs,
    sample_weight,
)
from qbench.checks.seeds import global_seed
from qbench.checks.tiny_models import FAMILIES, GROUP_SIZE, WHAT, tiny_model, tokens
from qbench.checks.verdict import Broke
from qbench.contracts import Scheme, verb_of
from qbench.errors import reason_of
from qbench.models.blocks import linears, read_weight
from qbench.plugin_file import import_for_functions
from qbench.quantization import quantize
from qbench.surroundings import Surroundings, stay_in_own_process


@dataclass(frozen=True)
class Call:
    """One call of a method's verb.

    where: the case, for people. shapes: (out, in) of every layer that must come back; the key is
    empty for a bare weight. result: what came back, or None. error: what was raised instead.
    changes: a sentence for each kind of side effect, by kind (`random_state`, `settings`,
    `process`, `attributes`, `inputs`, `block`, `memory`, `gradients`).
    """

    where: str
    scheme: Scheme
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)

    def place(self, layer: str) -> str:
        """The case and the layer, for people."""
        return f"{self.where} {layer}" if layer else self.where

    def weights(self) -> dict[str, Any]:
        """The quantized weights by layer; empty where the call failed or gave no such thing."""
        if self.error is not None:
            return {}
        if "" in self.shapes:
            return {"": self.result}
        return dict(getattr(self.result, "weights", {}))


def tour(method: Any) -> list[Call]:
    """Every case at two bit-widths, the ends of the range, a symmetric grid, and every tiny model.

    Taken once per class: methods are checked with their default parameters.
    """
    kind = type(method)
    if kind not in _last:
        calls = _take(method)
        _last.clear()
        _last[kind] = calls
    return _last[kind]


# By class, not by value: a method that is not hashable is checked too.
_last: dict[type, list[Call]] = {}


def answered(method: Any) -> list[Call]:
    """The calls of the tour that gave a result. Broke where none did: there is nothing to judge."""
    calls = [call for call in tour(method) if call.error is None]
    if not calls:
        raise Broke("no call gave a result")
    return calls


def _take(method: Any) -> list[Call]:
    """The tour ends early after three errors, each of which may have cost much time or memory."""
    import_for_functions(type(method))
    calls: list[Call] = []
    for stop in _stops(method):
        stop(calls)
        errors = [call for call in calls if call.error is not None]
        if len(errors) >= 3:
            break
    return calls


def _stops(method: Any) -> Iterator[Callable[[list[Call]], None]]:
    widths = bits_of(method)
    for case in CASES:
        for bits in dict.fromkeys((widths[0], widths[len(widths) // 2])):
            scheme = Scheme(bits, case.group_size)
            yield partial(_bare_call, method, scheme, (case.out, case.in_features))
    case = CASES[0]
    for bits in sorted({*method.bits} - {*widths}):  # the ends of the declared range
        yield partial(
            _bare_call, method, Scheme(bits, case.group_size), (case.out, case.in_features)
        )
    if method.symmetric:
        scheme = Scheme(widths[-1], case.group_size, symmetric=True)
        yield partial(_bare_call, method, scheme, (case.out, case.in_features))
    for family in FAMILIES:
        yield partial(_whole_model, method, Scheme(widths[0], GROUP_SIZE), family)


def _bare_call(method: Any, scheme: Scheme, shape: tuple[int, int], calls: list[Call]) -> None:
    where = f"{shape[0]}x{shape[1]} at {scheme}"
    start = len(calls)
    try:
        weight = sample_weight(*shape)
        arguments = sample_arguments(method, scheme, weight, sample_inputs(shape[1]))
        with torch.no_grad():
            watched(getattr(method, verb_of(method)), arguments, where, calls)
    except BaseException as error:
        if not any(call.error for call in calls[start:]):  # raised between two calls
            calls.append(Call(where, scheme, error=reason_of(error)))


def _whole_model(method: Any, scheme: Scheme, family: str, calls: list[Call]) -> None:
    """Through `qbench.quantization.quantize`, as every user does."""
    where = f"{WHAT[family]} at {scheme}"
    start = len(calls)
    try:
        quantize(tiny_model(family), spied_on(method, where, calls), scheme, tokens(8, 12))
    except BaseException as error:
        if not any(call.error for call in calls[start:]):  # raised between two calls
            calls.append(Call(where, scheme, error=reason_of(error)))


def spied_on(method: Any, where: str, calls: list[Call], copied: int | None = None) -> Any:
    """The same method with a verb that is watched: of a subclass, as it must stay a dataclass.

    copied: how many arguments are copied to be compared after the call; None for all. Of the
    others it shows whether torch has written to them.
    """
    kind = type(method)
    verb = verb_of(method)

    def spy(self: Any, *arguments: Any) -> Any:
        layer = len(calls)
        return watched(
            lambda *args: getattr(kind, verb)(self, *args),
            arguments,
            f"{where}, call {layer}",
            calls,
            copied,
        )

    subclass = type(kind.__name__, (kind,), {verb: spy, "__module__": kind.__module__})
    return subclass(**hyper_parameters(method))


def watched(
    verb: Callable[..., Any],
    arguments: tuple[Any, ...],
    where: str,
    calls: list[Call],
    copied: int | None = None,
) -> Any:
    """Call the verb, append what is seen to `calls`, and return its result or raise its error."""
    scheme = arguments[-1]
    shapes = _shapes(arguments)
    result = None
    error = None
    # Another state before every call: else a method that sets the same seed twice would go unseen.
    with global_seed(1000 + len(calls)):
        before = Surroundings.now()
        arguments_before = Arguments.of(arguments, copied)
        try:
            with stay_in_own_process():
                result = verb(*arguments)
        except BaseException as raised:
            error = raised
        changes = before.changes(Surroundings.now())
    text = None if error is None else reason_of(error)
    try:
        changes |= arguments_before.changes(arguments)
        changes |= _of_the_result(arguments_before, result)
    except Exception as broken:
        text = text or f"its result cannot be looked at: {type(broken).__name__}: {broken}"
    calls.append(Call(where, scheme, shapes, result, text, changes))
    if error is not None:
        raise error
    return result


def _of_the_result(arguments: Arguments, result: Any) -> dict[str, str]:
    changes = {}
    shared = arguments.shared_with(result)
    if shared is not None:
        changes["memory"] = shared
    for part, tensor in tensors_of(result).items():
        if tensor.requires_grad or tensor.grad_fn is not None:
            changes["gradients"] = f"{part} of the result requires gradients; detach it"
    return changes


def _shapes(arguments: tuple[Any, ...]) -> dict[str, tuple[int, int]]:
    """(out, in) of a block's linear layers that are to be quantized, or of the bare weight."""
    subject = arguments[0]
    if isinstance(subject, torch.Tensor):
        return {"": (subject.shape[0], subject.shape[1])}
    shapes = {}
    layers = linears(subject)
    for name in arguments[-1].of_layers(layers):
        weight = read_weight(layers[name])
        shapes[name] = (weight.shape[0], weight.shape[1])
    return shapes
