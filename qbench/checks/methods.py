"""The promises that every method keeps: our tests run them over all, `qbench check` over anyone's.

One promise is one function `check_*`: it takes a method and returns, or raises `Broke` with one
sentence, or `NotApplicable`. A method may declare `exceptions`: name of the check -> why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qbench.checks.errors import (
    check_beats_rounding_where_it_calibrates,
    check_block_loss_on_held_out_inputs,
    check_error_falls_with_bits,
    check_error_within_rounding,
    check_extreme_weights,
    check_outliers,
    check_small_rows,
    check_zeros_and_constants,
)
from qbench.checks.repetition import (
    check_deterministic,
    check_keeps_no_state,
    check_same_in_every_process,
)
from qbench.checks.results import (
    check_answers_every_call,
    check_group_size_honoured,
    check_half_precision_weights,
    check_no_more_bits_than_asked,
    check_refuses_bad_schemes,
    check_shape_and_format,
    check_stored_exactly,
    check_strided_weights,
    check_symmetric_honoured,
)
from qbench.checks.side_effects import (
    check_block_untouched,
    check_inputs_untouched,
    check_no_gradients_left,
    check_nothing_patched,
    check_process_untouched,
    check_random_state_untouched,
    check_results_own_their_memory,
    check_settings_untouched,
)
from qbench.checks.verdict import Broke, NotApplicable, Verdict
from qbench.contracts import verb_of
from qbench.formats import FORMATS
from qbench.registry import declared, get_method

Check = Callable[[Any], None]


def check_is_a_value(method: Any) -> None:
    """A frozen dataclass that declares itself and implements one verb."""
    verb_of(method)
    kind = type(method)
    if not getattr(vars(kind).get("__dataclass_params__"), "frozen", False):
        raise Broke(f"{kind.__name__} is not a frozen dataclass")
    again = kind(**asdict(method))
    if method != again or hash(method) != hash(again):
        raise Broke("two methods with equal parameters are not equal")
    if method.format not in FORMATS:
        raise Broke(f"format {method.format!r} is none of {', '.join(FORMATS)}")


# What these judge is one and the same tour; a method that ends the process there fails them all.
TOUR_CHECKS: tuple[Check, ...] = (
    check_answers_every_call,
    check_shape_and_format,
    check_inputs_untouched,
    check_block_untouched,
    check_results_own_their_memory,
    check_no_gradients_left,
    check_random_state_untouched,
    check_settings_untouched,
    check_nothing_patched,
    check_process_untouched,
    check_no_more_bits_than_asked,
    check_group_size_honoured,
    check_symmetric_honoured,
    check_stored_exactly,
)
CHECKS: tuple[Check, ...] = (
    check_is_a_value,
    *TOUR_CHECKS,
    check_deterministic,
    check_keeps_no_state,
    check_same_in_every_process,
    check_error_falls_with_bits,
    check_error_within_rounding,
    check_beats_rounding_where_it_calibrates,
    check_block_loss_on_held_out_inputs,
    check_zeros_and_constants,
    check_outliers,
    check_extreme_weights,
    check_small_rows,
    check_half_precision_weights,
    check_strided_weights,
    check_refuses_bad_schemes,
)


def run_check(name: str, check: Check) -> Verdict:
    """One check of the method called `name`, in this process. Whatever it raises is a verdict."""
    title = check.__name__
    try:
        if declared(name).external:
            return Verdict(name, title, "n/a", "another package quantizes")
        method = get_method(name)
        exceptions = getattr(method, "exceptions", {})
        if title in exceptions:
            return Verdict(name, title, "n/a", f"declared exception: {exceptions[title]}")
        check(method)
    except NotApplicable as reason:
        return Verdict(name, title, "n/a", str(reason))
    except Broke as broken:
        return Verdict(name, title, "FAIL", str(broken))
    except BaseException as error:  # a foreign method may raise anything, an exit too
        return Verdict(name, title, "FAIL", f"raised {type(error).__name__}: {error}")
    return Verdict(name, title, "ok")
