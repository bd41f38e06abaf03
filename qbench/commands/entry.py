"""The entry point of `qbench`: an interrupt during imports is handled like one during work."""

from __future__ import annotations

import sys

INTERRUPTED = "interrupted; everything finished is kept, and the same command goes on from here"


def main() -> None:
    """Import the commands, and run the one that is asked."""
    try:
        from qbench.commands.main import main as run
    except KeyboardInterrupt:
        print(f"qbench: {INTERRUPTED}", file=sys.stderr)
        raise SystemExit(130) from None
    run()
