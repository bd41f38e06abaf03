"""The errors a user can meet.

    QbenchError
    |-- ConfigError    the request is wrong: unknown name, bits out of range, unreadable grid      (exit code 2)
    |-- ModelError     a model cannot be found, read or quantized at all                           (exit code 2)
    |-- DataError      a data set or calibration text is missing, empty or malformed               (exit code 2)
    |-- MethodError    a method failed on a layer: the cell fails, the grid goes on                (exit code 1)
    `-- StoreError     a file of ours cannot be read or written                                    (exit code 2)

Every message says what was wrong (with its value and place), what is allowed, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class QbenchError(Exception):
    """Root of all errors that qbench raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 2

    def __str__(self) -> str:
        """The message; what a damaged file put into it is cut."""
        text = super().__str__()
        return text if len(text) <= 1000 else f"{text[:600]} [...] {text[-300:]}"


class ConfigError(QbenchError):
    """The request itself is wrong."""


class ModelError(QbenchError):
    """A model cannot be found or read."""


class DataError(QbenchError):
    """A data set or a calibration text is missing, empty or malformed."""


class MethodError(QbenchError):
    """A quantization method failed on a layer."""

    exit_code = 1


class StoreError(QbenchError):
    """A file written by qbench cannot be read, or an output cannot be written."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name: the name, the nearest known one, and all that exist."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}"


def require_at_least(name: str, value: int | None, least: int = 1) -> None:
    """ConfigError unless `value` is None or at least `least`."""
    if value is not None and value < least:
        raise ConfigError(
            f"{name}={value} is too small; give {least} or more, or leave it out for all"
        )
