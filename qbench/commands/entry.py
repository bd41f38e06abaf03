"""The entry point of `qbench`: an interrupt during imports is handled like one during work."""

from __future__ import annotations

import signal
import sys

from qbench.outside_text import take_any_text

INTERRUPTED = "interrupted; everything finished is kept, and the same command goes on from here"


def main() -> None:
    """Import the commands, and run the one that is asked."""
    _end_in_order()
    take_any_text()
    try:
        from qbench.commands.main import main as run
    except KeyboardInterrupt:
        print(f"qbench: {INTERRUPTED}", file=sys.stderr)
        raise SystemExit(130) from None
    run()


def _end_in_order() -> None:
    """Have `kill`, a time limit or a terminal that closes end the command as Ctrl-C does.

    What is ignored stays so, as under `nohup`.
    """
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:
            signal.signal(ending, signal.default_int_handler)
