"""Why a cell has no scores, in one sentence, whatever was raised."""

from __future__ import annotations

from qbench.errors import QbenchError

LONGEST = 1000  # characters of a reason


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


def readable(text: str) -> str:
    """The text cut to what one reads, and without halves of characters, which no file takes."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 305]} [...] {text[-298:]}"
    return text.encode("utf-8", "replace").decode()
