"""The errors a user can meet.

    QbenchError
    |-- ConfigError    exit code 2   the request is wrong: unknown name, bits out of range, bad grid
    |-- ModelError     exit code 2   a model cannot be found, read or quantized at all
    |-- DataError      exit code 2   a data set or calibration text is missing, empty or malformed
    |-- MethodError    exit code 1   a method failed on a layer: the cell fails, the grid goes on
    `-- StoreError     exit code 2   a file of ours cannot be read or written

Every message says what was wrong (with its value and place), what is allowed, and what to do.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches

from qbench.outside_text import printable

# Of a baseline, method, kernel or task: a part of a path, and of a label whose words are apart.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
LONGEST = 1000  # characters of a message
MOST_SECONDS = 10**9  # that a system waits: its clocks do not count much further
SAID = 300  # characters of what a process printed last
_BY_SYSTEM = {
    signal.SIGKILL: "as the system does where memory runs out",
    signal.SIGBUS: "as the system does where a mapped file cannot be had, on a full disk for one",
}
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1  # of a generator: signed, of 64 bits


class QbenchError(Exception):
    """Root of all errors that qbench raises on purpose.

    exit_code: what the command line returns when it ends with this error.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line, cut in the middle where a damaged file made it endless.

        It may quote a damaged file, so it holds nothing that a terminal would act on.
        """
        text = printable(" ".join(super().__str__().split()))
        if len(text) <= LONGEST:
            return text
        return f"{text[:600]} [...] {text[-300:]}"


class ConfigError(QbenchError):
    """The request itself is wrong."""


class ModelError(QbenchError):
    """A model cannot be found, read or quantized."""


class DataError(QbenchError):
    """A data set or a calibration text is missing, empty or malformed."""


class MethodError(QbenchError):
    """A quantization method failed on a layer."""

    exit_code = 1


class StoreError(QbenchError):
    """A file written by qbench cannot be read, or an output cannot be written."""


def unknown_name(kind: str, name: object, known: Iterable[str], listed: str | None = None) -> str:
    """One sentence for an unknown name: the name, the nearest known one, and all that exist.

    name: what was given as one; it need not be a string. listed: the command that lists them, where
    they are too many for a sentence.
    """
    names = sorted(known)
    nearest = _nearest(str(name), names)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    if listed is not None:
        return f"unknown {kind} {name!r}.{hint} `{listed}` lists what there is"
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}"


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    """The names that are meant, at most two: in other letters, misspelt, or begun alike."""
    by_small = {known.lower(): known for known in names}
    small = name.lower()
    if small in by_small:
        return [by_small[small]]
    begun = [known for low, known in by_small.items() if small and low.startswith(small)]
    if 0 < len(begun) <= 2:
        return begun
    return [by_small[low] for low in get_close_matches(small, by_small, n=1)]


def require_at_least(name: str, value: float | None, least: int = 1, instead: str = "") -> None:
    """ConfigError unless `value` is None or at least `least`.

    instead: the end of the sentence, such as `, or 'all'` for what may be given instead.
    """
    if value is not None and not value >= least:  # nor NaN
        raise ConfigError(f"{name}={value} is too small; give {least} or more{instead}")


def require_seed(name: str, seed: int) -> None:
    """ConfigError for a seed that no generator takes."""
    if not LEAST_SEED <= seed <= LARGEST_SEED:
        raise ConfigError(
            f"{name}={seed} has more than 64 bits; give a seed from {LEAST_SEED} to {LARGEST_SEED}"
        )


def require_plain_name(place: str, name: str, parts: int = 1) -> None:
    """ConfigError for a name that is no part of a path, or that would be ambiguous in a label.

    place: what has the name, such as `class Mine of mine.py`. parts: that a colon may separate.
    """
    words = name.split(":")
    if len(words) > parts or not all(map(PLAIN_NAME.fullmatch, words)):
        raise ConfigError(
            f"{place} has the name {name!r}, which is not a plain name of letters, digits, '.', "
            "'_' and '-'; for example my-variant"
        )


def reason_of(error: BaseException) -> str:
    """An error in words: those of ours are sentences already, others come with their type."""
    try:
        text = str(error).strip()
    except Exception:  # an error of a plug-in's own may be broken, too
        text = ""
    if not isinstance(error, QbenchError):
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    return readable(text)


def signal_in_words(number: int) -> str:
    """The name of a signal, with why the system may have sent it."""
    with suppress(ValueError):
        sent = signal.Signals(number)
        return f"{sent.name}, {_BY_SYSTEM[sent]}" if sent in _BY_SYSTEM else sent.name
    return f"signal {number}"


def ending_of(code: int, said: str = "") -> str:
    """How a process ended, in words that follow its name. said: what it printed to the end."""
    ended = f"ended with exit code {code}"
    if code < 0:
        ended = f"was ended by {signal_in_words(-code)}"
    last = said.strip()[-SAID:]
    return readable(f"{ended}; it last said: {last}") if last else ended


def readable(text: str) -> str:
    """The text cut to what one reads, and without halves of characters, which no file takes."""
    if len(text) > LONGEST:
        text = f"{text[:600]} [...] {text[-300:]}"
    return text.encode("utf-8", "replace").decode()
