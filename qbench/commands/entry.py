"""The entry point of `qbench`: an interrupt during imports is handled like one during work."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from qbench.outside_text import outlive_readers, take_any_text

if TYPE_CHECKING:
    from collections.abc import Sequence

RESUMED = "interrupted; everything finished is kept, and the same command goes on from here"
ANEW = "interrupted; the same command begins anew"


def main() -> None:
    """Import the commands, and run the one that is asked."""
    try:
        _end_in_order()
        take_any_text()
        outlive_readers()
        from qbench.commands.main import main as run
    except KeyboardInterrupt:
        print(f"qbench: {interrupted(sys.argv[1:])}", file=sys.stderr)
        raise SystemExit(130) from None
    run()


def interrupted(words: Sequence[str]) -> str:
    """The sentence for an interrupted command. words: of its line, behind `qbench`.

    What runs cells has a folder that it resumes: `run` and `regress`, and `compare` where it runs a
    method's file.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    if command == "compare":
        return RESUMED if any(word.endswith(".py") for word in words) else ANEW
    resumes = command in ("run", "regress") and "--dry-run" not in words
    return RESUMED if resumes else ANEW


def _end_in_order() -> None:
    """Have `kill`, a time limit or a terminal that closes end the command as Ctrl-C does.

    What is ignored stays so, as under `nohup`. Ctrl-C was without words until now.
    """
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:
            signal.signal(ending, signal.default_int_handler)
