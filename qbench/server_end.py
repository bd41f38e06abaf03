"""What the server of processes imports first: Linux kills it when its caller ends.

The server itself looks after its caller only once it has imported all that it is to preload. That
takes seconds, and where memory is limited OpenBLAS may never come back from it. A signal of the
pipe between them would not come, as a request that waits in the server's socket holds its other
end. The processes that it forks do not inherit this (prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


def _end_with_caller() -> None:
    """Only for a caller's main thread: the signal comes with the end of the thread that started."""
    caller = os.getppid()
    with suppress(OSError):
        of_main_thread = Path(f"/proc/{caller}/task/{caller}/children").read_text().split()
        if str(os.getpid()) in of_main_thread:
            ctypes.CDLL(None).prctl(PARENT_DEATH, int(signal.SIGKILL), 0, 0, 0)


if sys.platform == "linux" and any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    _end_with_caller()
