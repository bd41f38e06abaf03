"""Promises about what a call leaves behind: nothing but its result. All read the same tour."""

from __future__ import annotations

from typing import Any

from qbench.checks.tour import tour
from qbench.checks.verdict import Broke, NotApplicable
from qbench.contracts import verb_of


def check_inputs_untouched(method: Any) -> None:
    """No weight, statistic, parameter, input or target is changed, at any call."""
    _none_seen(method, "inputs")


def check_block_untouched(method: Any) -> None:
    """Parameters keep requires_grad and identity, modules their mode, hooks and attributes."""
    if verb_of(method) != "quantize_block":
        raise NotApplicable("the method sees no block")
    _none_seen(method, "block")


def check_results_own_their_memory(method: Any) -> None:
    """No part of a result lies in the memory of an input, which the walk overwrites."""
    _none_seen(method, "memory")


def check_no_gradients_left(method: Any) -> None:
    """No part of a result requires gradients or holds on to their graph."""
    _none_seen(method, "gradients")


def check_random_state_untouched(method: Any) -> None:
    """The global random generators of torch, numpy and Python are neither used nor set."""
    _none_seen(method, "random_state")


def check_settings_untouched(method: Any) -> None:
    """Default dtype and device, threads, grad mode, determinism, denormals and the like stay."""
    _none_seen(method, "settings")


def check_nothing_patched(method: Any) -> None:
    """No attribute of torch, numpy, the built-ins or qbench is bound to something else."""
    _none_seen(method, "attributes")


def check_process_untouched(method: Any) -> None:
    """Folder, environment, descriptors, signals stay; no process and no thread is left behind."""
    _none_seen(method, "process")


def _none_seen(method: Any, kind: str) -> None:
    for call in tour(method):
        if kind in call.changes:
            raise Broke(f"{call.where}: {call.changes[kind]}")
