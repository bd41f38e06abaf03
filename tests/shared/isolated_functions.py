"""What processes of their own do in tests; they find these functions by name, in this module."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time

from qbench.experiment.cell_process import work


def tell_numbers(tell, *numbers):
    """Tell each number, and print to both streams."""
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    for number in numbers:
        tell({"number": number})


def leave(tell, how):
    """End in one way, after one event."""
    tell({"how": how})
    if how == "raise":
        raise BaseException("no")
    if how == "exit":
        os._exit(3)
    if how == "crash":
        ctypes.string_at(0)
    if how == "fork":
        os.fork()
        tell({"told": "twice"})
    if how == "hang":
        time.sleep(1000)


def be_killed(tell, *arguments):
    """End as where the system ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def work_without_output(tell, job):
    """Work on a cell, after what it would print to has been closed."""
    os.close(1)
    os.close(2)
    work(tell, job)


def leave_a_child(tell):
    """Start a process that outlives this one."""
    child = subprocess.Popen(["sleep", "1000"])
    tell({"child": child.pid})


def detach(tell, how):
    """Start a process with a session of its own, whose parent may be gone, and end or wait."""
    if how == "orphan":
        shell = ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"]
        child = int(subprocess.run(shell, capture_output=True, check=True).stdout)
    else:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    tell({"child": child})
    if how != "end":
        time.sleep(1000)


def tell_in_pieces(tell):
    """Tell by a disk that takes a few bytes at a time, and is full once in the middle of a line."""
    write = os.write
    left = [3]

    def refuse(file, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "full")
        return write(file, data[:7])

    os.write = lambda file, data: write(file, data[:7])
    tell({"text": "x" * 100})
    os.write = refuse
    try:
        tell({"text": "y" * 100})
    except OSError as error:
        os.write = write
        tell({"refused": error.errno})


def tell_variable(tell, name):
    tell({"value": os.environ.get(name)})
