"""What a contract check says: the outcome, and two ways in which a check ends early. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "FAIL", "n/a"]


@dataclass(frozen=True)
class Verdict:
    """One check of one method or kernel.

    subject: name of the method or kernel. check: name of the check's function. outcome: `n/a` where
    the check does not apply. reason: one sentence; empty where the outcome is `ok`.
    """

    subject: str
    check: str
    outcome: Outcome
    reason: str = ""


class Broke(Exception):
    """A promise that was not kept; the message is the reason of the verdict."""


class NotApplicable(Exception):
    """The promise does not concern this method; the message says why."""
