"""A function in a process of its own, and what it tells: a hang, a crash or an exit is an answer.

    with Isolated(judge, ("gptq", 3)) as process:      # judge(tell, "gptq", 3)
        while event := process.next(within=60):        # what judge told, one by one
            ...
        print(process.ending)                          # None while it runs, else why it is over

A server imports what is heavy once and forks a fresh process each time, so that a start takes
hundredths of a second. Where there are no forks, the process is spawned.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil

from qbench.errors import ConfigError, signal_in_words
from qbench.outside_text import take_any_text

LOST = 255  # the exit code of a process whose server was killed, by multiprocessing
ROUNDS = 100  # of ending what a process has started: what is ended last may have started more
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux, prctl(2)
_starting = threading.Lock()  # of the environment, one for all threads that start processes
SHOWN = 60  # bytes of a line that cannot be read
POLL = (0.01, 0.2)  # seconds between two looks at what was told: at first, and after a while
Tell = Callable[[dict[str, Any]], None]  # called with a JSON-able event


def preload(*modules: str) -> None:
    """Start the server, and have it import these modules while the caller does something else.

    Processes are started by it from then on. Where it runs already, nothing happens.
    """
    context = _context()
    if context.get_start_method() != "forkserver":
        return
    context.set_forkserver_preload(["qbench.server_end", *modules])
    # A driver that was asked for GPUs before a fork is of no use after it; torch asks otherwise.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # The server imports before it guards itself against Ctrl-C, which reaches it, too. It starts
    # Python's tracker of resources, and the start of that lets Ctrl-C through again.
    with _safe_path():
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _safe_path() -> Iterator[dict[str, str]]:
    """Python's own processes that start meanwhile import nothing from the current folder.

    multiprocessing starts them with `-c`, for which that folder comes before all libraries, so that
    a file `yaml.py` there would be executed. What a process then runs gets the path of its caller,
    and the variables of the environment, which are given.
    """
    with _starting:
        before = dict(os.environ)
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield before
        finally:
            if "PYTHONSAFEPATH" in before:
                os.environ["PYTHONSAFEPATH"] = before["PYTHONSAFEPATH"]
            else:
                del os.environ["PYTHONSAFEPATH"]


class Isolated:
    """A running function and the events that it has told.

    At the end of the `with` block it and all processes that it has started are ended, but for those
    with a session of their own if it crashed (and where the system is not Linux). It ends with the
    process that started it, however that one ends.
    """

    def __init__(
        self, function: Callable[..., None], arguments: tuple[Any, ...], output: Path | None = None
    ) -> None:
        """function: of a module's top level, called with `tell` and the arguments, which are
        pickled. output: the file for what it prints; None for nowhere. ConfigError where no
        process can be started.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="qbench-process-")
        self._events = Path(self._folder.name) / "events.jsonl"
        self._events.touch()
        self._read = 0  # bytes of the file that were given as events
        self._unreadable: str | None = None  # the beginning of a line that is no event
        target = None if output is None else str(output.resolve())
        try:
            with _safe_path() as variables:
                self.process = _context().Process(
                    target=_enter, args=(function, arguments, str(self._events), target, variables)
                )
                self.process.start()
        except (EOFError, ConnectionError, BlockingIOError) as error:  # else EOFError is Ctrl-C
            self._folder.cleanup()
            raise ConfigError(
                "no process can be started: the server of processes ended, as where memory, "
                "processes or open files are limited (`ulimit -a`); raise the limit, and give the "
                "command again"
            ) from error
        self._server = _server()

    def __enter__(self) -> Isolated:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process and all that it left behind."""
        if self.process.exitcode in (None, LOST):
            _end_descendants(self.process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        if self._server is not None:  # one that was stopped would not tell that a process ended
            with suppress(ProcessLookupError):
                os.kill(self._server, signal.SIGCONT)
        self.process.join()
        self.process.close()
        self._folder.cleanup()

    def next(self, within: float) -> dict[str, Any] | None:
        """The next event; None where the process ended without one, or none came in time.

        within: seconds to wait for it. `ending` tells one from the other. There is none after a
        line that cannot be read.
        """
        deadline = time.monotonic() + within
        pause, longest = POLL
        while self._unreadable is None:
            alive = self.process.is_alive()  # looked at before the file: its last words count
            with self._events.open("rb") as file:
                file.seek(self._read)
                line = file.readline()
            if line.endswith(b"\n"):
                self._read += len(line)
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        return event
                self._unreadable = line[:SHOWN].decode(errors="replace")
                return None
            if not alive or time.monotonic() > deadline:
                return None
            time.sleep(pause)
            pause = min(2 * pause, longest)
        return None

    @property
    def ending(self) -> str | None:
        """How the process ended, in words that follow its name; None while it runs."""
        if self._unreadable is not None:
            return f"told what cannot be read: {self._unreadable!r}"
        code = self.process.exitcode
        if code is None:
            return None
        if code == LOST and self._server is not None and not runs(self._server):
            return "was lost, as somebody ended the server of processes; give the command again"
        if code >= 0:
            return f"ended the process with exit code {code}"
        return f"ended the process by {signal_in_words(-code)}"


def limit_memory(room: int) -> None:
    """Let this process take at most `room` bytes of address space more than it has.

    An endless allocation then ends in a MemoryError, and not in the machine's.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _server() -> int | None:
    """The id of the process that forks the others; None where there is none."""
    # Python has no public name for it.
    return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)


def runs(pid: int, begun: float = math.inf) -> bool:
    """Whether there is a process of this id.

    begun: seconds of the epoch. One that began later is another one, which got the id anew.
    """
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= begun)
    return False


def _end_descendants(pid: int) -> None:
    """End all that a process has started, and what that has started, in whatever session."""
    for _ in range(ROUNDS):
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            found = psutil.Process(pid).children(recursive=True)
        running = [process for process in found if runs(process.pid)]
        for process in running:
            with suppress(psutil.Error):
                process.kill()
        if not running:
            return


def _context() -> Any:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    return multiprocessing.get_context(method)


def _enter(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    events: str,
    output: str | None,
    variables: dict[str, str],
) -> None:
    """What the new process does, from its first line to its last.

    variables: of the environment of who started it; the server has those of its own start.
    """
    os.environ.clear()
    os.environ.update(variables)
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that everything it leaves behind ends with it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # As in any Python, whatever this one was started by: a shell's background job ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(OSError, AttributeError):  # what loses its parent becomes a child of this process
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _redirect(output)
    take_any_text()
    _lock_of_threads()
    gc.freeze()  # what was imported is no garbage: looking through it takes a third of a second
    own = os.getpid()
    one_at_a_time = threading.Lock()

    def tell(event: dict[str, Any]) -> None:
        if os.getpid() != own:
            os._exit(0)  # a twin that the function forked has nothing to tell
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        with one_at_a_time:
            _append(events, line)

    code = 0
    try:
        function(tell, *arguments)
    except BaseException:
        log_traceback()
        code = 1
    with suppress(Exception):  # where there is no memory left, for one
        _end_descendants(os.getpid())
    # At once: exit handlers and threads that the function left would have the last word.
    os._exit(code)


def log_traceback() -> None:
    """Print the error that is handled, with its traceback, where anything can be printed.

    A method may have closed the output or filled its disk, and what it failed of is told all the
    same.
    """
    with suppress(Exception):
        traceback.print_exc()


def _append(path: str, line: bytes) -> None:
    """Append the whole line to a file, or nothing: the next one would be glued to a half.

    By its absolute path each time: what the process closes or where it changes to makes no
    difference. OSError where the disk refuses.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    before = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    finally:
        os.close(descriptor)


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end this one's group."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _end_descendants(os.getpid())
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _lock_of_threads() -> None:
    """Give tqdm, where it is imported, a lock of this process's threads.

    Its own is a semaphore of the system as well, which nobody removes where a process ends at once,
    so that Python's tracker of resources warns of each of them in the end.
    """
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.set_lock(threading.RLock())


def _redirect(output: str | None) -> None:
    """Nothing is read, and what is printed goes to a file or nowhere."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with open(output or os.devnull, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
