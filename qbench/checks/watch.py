"""A method whose calls are held against the contract while it is at work on a real model.

What `qbench check` proves on samples, a run cannot take on trust from a plug-in: a result of
another shape or of more bits than asked, or a change of what everybody shares, is an error at that
call.
"""

from __future__ import annotations

from typing import Any

from qbench.checks.results import expect_promises
from qbench.checks.tour import Call, spied_on
from qbench.checks.verdict import Broke
from qbench.contracts import verb_of
from qbench.errors import MethodError

WHERE = "in the run"


def watched(method: Any) -> Any:
    """The same method; MethodError from a call of its verb that breaks a promise.

    What is seen is one call after the other, so that a promise about several calls, such as to be
    deterministic, is left to `qbench check`.
    """
    # Of a block's inputs there may be gigabytes: the block alone is compared.
    compared = 1 if verb_of(method) == "quantize_block" else None
    return spied_on(method, WHERE, _Judge(method), compared)


class _Judge(list[Call]):
    """Where calls are put as they are seen; none is kept, as their results are the model."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def append(self, call: Call) -> None:
        """Judge a call that has given a result; an error that was raised speaks for itself."""
        if call.error is not None:
            return
        try:
            expect_promises(self.method, call)
        except Broke as broken:
            # The layer or block is named by who catches it.
            reason = str(broken).removeprefix(f"{WHERE}, call 0").lstrip(": ")
            raise MethodError(
                f"the method breaks its contract: {reason} (`qbench check` with it tells more)"
            ) from None
