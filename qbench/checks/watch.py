"""A method whose calls are held against the contract while it is at work on a real model.

What `qbench check` proves on samples, a run cannot take on trust from a plug-in: a result of
another shape or of more bits than asked, weights that are not those of the layer, a second answer
that differs from the first, or a change of what everybody shares, is an error at that call. How
good a result is, is what the run measures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qbench.checks.methods import check_is_a_value
from qbench.checks.results import expect_promises
from qbench.checks.samples import equal, hyper_parameters
from qbench.checks.tour import Call, spied_on
from qbench.checks.verdict import Broke
from qbench.contracts import verb_of
from qbench.errors import MethodError
from qbench.plugin_file import import_for_functions

WHERE = "in the run"
# Of the squared error, to the weight's own square. Zeros have 1, and a grid without zero a little
# more where one weight of a group is huge; another matrix, or a transposed one, has 2.
WORST = 1.5


@dataclass
class Clock:
    """What the watch itself costs: seconds of all its calls but those of the method's work.

    of_the_verb: seconds of the method's own last call.
    """

    seconds: float = 0.0
    of_the_verb: float = 0.0


def watched(method: Any, clock: Clock) -> Any:
    """The same method; MethodError from a call of its verb that breaks a promise, or at once.

    Of a verb that takes one weight the first call is made twice. Other promises about several calls
    are left to `qbench check`. clock: is told what the watch costs.
    """
    import_for_functions(type(method))
    judge = _Judge(method)
    try:
        check_is_a_value(method)
    except Broke as broken:
        raise _broken(str(broken)) from None
    verb = verb_of(method)
    of_a_block = verb == "quantize_block"
    own = type(method)

    def timed(self: Any, *arguments: Any) -> Any:
        started = _now()
        result = getattr(own, verb)(self, *arguments)
        clock.of_the_verb = _now() - started
        return result

    # Of a block's inputs there may be gigabytes: the block alone is copied to be compared.
    copied = 1 if of_a_block else None
    kind = type(spied_on(_with_verb(method, own, timed), WHERE, judge, copied))

    def judged(self: Any, *arguments: Any) -> Any:
        started = _now()
        first = len(judge) == 0
        result = getattr(kind, verb)(self, *arguments)
        work = clock.of_the_verb
        if verb == "quantize_weight":
            _expect_its_own(arguments[0], result)
        if first and not of_a_block and not equal(result, getattr(kind, verb)(self, *arguments)):
            raise _broken("the same call gives another result")
        clock.seconds += _now() - started - work
        return result

    return _with_verb(method, kind, judged)


def _with_verb(method: Any, kind: type, verb: Callable[..., Any]) -> Any:
    """The same method, of a subclass whose verb is this one."""
    namespace = {verb_of(method): verb, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), namespace)(**hyper_parameters(method))


def _now() -> float:
    """Seconds; a GPU has done by then what it was told before."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Judge(list[Call]):
    """Where calls are put as they are seen; none is kept, as their results are the model."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method
        self.seen = 0

    def __len__(self) -> int:
        """How many calls there were; each has random states of its own."""
        return self.seen

    def append(self, call: Call) -> None:
        """Judge a call that has given a result; an error that was raised speaks for itself."""
        self.seen += 1
        if call.error is not None:
            return
        try:
            expect_promises(self.method, call)
        except Broke as broken:
            raise _broken(str(broken)) from None


def _expect_its_own(weight: Tensor, result: Any) -> None:
    """MethodError where a result is further from the weight than zeros are, and more."""
    W = weight.double()
    error = float((result.dequantize().double() - W).square().sum())
    if error > WORST * float(W.square().sum()):
        raise _broken(
            f"the squared error is {error / float(W.square().sum()):.3g} times the square of the "
            "weight: it is another one, transposed, or in another order"
        )


def _broken(reason: str) -> MethodError:
    """The layer or block is named by who catches it."""
    reason = re.sub(rf"^{WHERE}, call \d+:? *", "", reason)
    return MethodError(
        f"the method breaks its contract: {reason} (`qbench check` with it tells more)"
    )
