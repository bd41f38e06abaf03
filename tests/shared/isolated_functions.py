"""What processes of their own do in tests; they find these functions by name, in this module."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time


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


def leave_a_child(tell):
    """Start a process that outlives this one."""
    child = subprocess.Popen(["sleep", "1000"])
    tell({"child": child.pid})


def tell_variable(tell, name):
    tell({"value": os.environ.get(name)})
