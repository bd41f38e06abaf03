"""A function in a process of its own: what it tells, how it ends, and what it leaves: nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from fresh_python import run_python
from isolated_functions import (
    detach,
    leave,
    leave_a_child,
    tell_in_pieces,
    tell_numbers,
    tell_variable,
)
from places import ROOT
from qbench import isolation
from qbench.errors import ConfigError
from qbench.isolation import Isolated

CALLER = """
import sys
sys.path.insert(0, sys.argv[1])
from isolated_functions import tell_numbers
from qbench.isolation import Isolated, preload
if __name__ == "__main__":
    if sys.argv[2] == "preload":
        preload("isolated_functions", "yaml")
    with Isolated(tell_numbers, (1,)) as process:
        print(process.next(60), process.next(60), process.ending)
"""
PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from isolated_functions import leave
from qbench.isolation import Isolated
if __name__ == "__main__":
    process = Isolated(leave, ("hang",))
    process.next(60)
    print(process.process.pid, flush=True)
    os._exit(9)  # as if it were killed: nothing is cleaned up
"""


STUCK = """
import ctypes, pathlib
pathlib.Path(__file__).with_name("began").touch()
ctypes.PyDLL(None).sleep(100)  # as OpenBLAS may, with Python's lock
"""
OF_STUCK = """
import os, pathlib, sys, time
from multiprocessing import forkserver
from qbench import isolation
isolation.preload("stuck")
while not pathlib.Path("began").exists():
    time.sleep(0.01)
waits = forkserver.connect_to_new_process([])  # as any command does while the server imports
os.kill(isolation._server(), int(sys.argv[1]))
print(isolation._server(), flush=True)
os._exit(9)
"""
STOPPED = """
import os, signal
from qbench import isolation
def hang(tell):
    tell({})
    signal.pause()
if __name__ == "__main__":
    with isolation.Isolated(hang, ()) as process:
        print(process.next(60))
        os.kill(isolation._server(), signal.SIGSTOP)
"""


def gone(pid):
    """Wait until a process is gone; whether it is after a minute."""
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_events_come_one_by_one_and_what_is_printed_goes_to_a_file(tmp_path):
    with Isolated(tell_numbers, (1, 2.5), tmp_path / "log") as process:
        assert process.next(60) == {"number": 1} and process.next(60) == {"number": 2.5}
        assert process.next(60) is None
        assert process.ending == "ended the process with exit code 0"
    assert (tmp_path / "log").read_text() == "to stdout\nto stderr\n"


@pytest.mark.parametrize(
    "how, ending",
    [
        ("raise", "ended the process with exit code 1"),
        ("exit", "ended the process with exit code 3"),
        ("crash", "ended the process by SIGSEGV"),
        ("hang", None),
    ],
)
def test_every_end_is_told_in_words(how, ending):
    with Isolated(leave, (how,)) as process:
        assert process.next(60) == {"how": how}
        assert process.next(0.2 if how == "hang" else 60) is None
        assert process.ending == ending
        pid = process.process.pid
    assert gone(pid)


def test_it_has_the_variables_of_now_rather_than_of_when_the_server_started(monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("QBENCH_ENVS", value)
        with Isolated(tell_variable, ("QBENCH_ENVS",)) as process:
            assert process.next(60) == {"value": value}


def test_a_twin_that_the_function_forks_tells_nothing():
    with Isolated(leave, ("fork",)) as process:
        told = [process.next(60) for _ in range(3)]
    assert told == [{"how": "fork"}, {"told": "twice"}, None]


def test_what_the_function_leaves_behind_ends_with_it():
    with Isolated(leave_a_child, ()) as process:
        child = process.next(60)["child"]
    assert gone(child)


@pytest.mark.parametrize("how", ["end", "wait", "orphan"])
def test_what_it_gave_a_session_of_its_own_ends_with_it(how):
    with Isolated(detach, (how,)) as process:
        child = process.next(60)["child"]
        if how == "end":
            assert process.next(60) is None
    assert gone(child)


def test_a_line_is_told_whole_or_not_at_all():
    with Isolated(tell_in_pieces, ()) as process:
        told = [process.next(60) for _ in range(3)]
    assert told == [{"text": "x" * 100}, {"refused": errno.ENOSPC}, None]


@pytest.mark.parametrize("line", [b'{"half": {"whole": 1}\n', b"3\n", b"\xff\n"])
def test_after_a_line_that_cannot_be_read_there_is_none(line):
    with Isolated(leave, ("hang",)) as process:
        assert process.next(60) == {"how": "hang"}
        with process._events.open("ab") as file:
            file.write(line + b'{"more": 1}\n')
        assert process.next(60) is None and process.next(0) is None
        assert process.ending.startswith("told what cannot be read: ")


@pytest.mark.skipif(sys.platform != "linux", reason="the masks of processes are read off /proc")
def test_ctrl_c_does_not_reach_the_server_while_it_imports():
    program = """
from pathlib import Path
from qbench import isolation
isolation.preload("qbench.errors")
print(Path(f"/proc/{isolation._server()}/status").read_text())
"""
    status = run_python("-c", program).stdout
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    assert int(blocked, 16) & 1 << signal.SIGINT - 1


def test_where_the_server_is_lost_that_is_said_and_the_next_process_has_another():
    with Isolated(leave, ("hang",)) as process:
        assert process.next(60) == {"how": "hang"}
        pid = process.process.pid
        os.kill(isolation._server(), signal.SIGKILL)
        assert process.next(60) is None
        assert process.ending.startswith("was lost, as somebody ended the server of processes")
    assert gone(pid)
    with Isolated(tell_numbers, (1,)) as process:
        assert process.next(60) == {"number": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends after its imports")
@pytest.mark.parametrize("sent", [0, signal.SIGSTOP], ids=["busy", "stopped"])
def test_a_server_ends_with_its_caller_also_in_the_middle_of_an_import(tmp_path, sent):
    (tmp_path / "stuck.py").write_text(STUCK)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with open(tmp_path / "told", "w+") as told:
        subprocess.run(
            [sys.executable, "-P", "-c", OF_STUCK, str(int(sent))],
            cwd=tmp_path,
            stdout=told,
            env=os.environ | {"PYTHONPATH": path},
        )
        told.seek(0)
        assert gone(int(told.read()))


def test_the_end_of_a_process_waits_for_no_server_that_was_stopped(tmp_path):
    (tmp_path / "stopped.py").write_text(STOPPED)
    done = run_python(tmp_path / "stopped.py", timeout=300)
    assert done.stdout == "{}\n" and not done.stderr


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    done = run_python(tmp_path / "parent.py", ROOT / "tests" / "shared", env={**os.environ})
    assert done.returncode == 9, done.stderr
    assert gone(int(done.stdout))


def test_bars_of_progress_leave_no_semaphores(tmp_path):
    (tmp_path / "bars.py").write_text(
        "import tqdm\ndef show(tell):\n    list(tqdm.tqdm(range(3)))\n    tell({'shown': 3})\n"
    )
    (tmp_path / "script.py").write_text(
        "from bars import show\n"
        "from qbench import isolation\n"
        "if __name__ == '__main__':\n"
        "    with isolation.Isolated(show, ()) as process:\n"
        "        print(process.next(within=60))\n"
        "        process.next(within=60)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.stdout == "{'shown': 3}\n" and not done.stderr


@pytest.mark.parametrize("preloads", ["preload", "nothing"])
def test_nothing_is_imported_from_the_current_folder(tmp_path, preloads):
    """Not even by the processes that multiprocessing starts before ours."""
    trap = f"open({str(tmp_path / 'executed')!r}, 'w'); raise SystemExit('executed')"
    for name in ("yaml", "psutil", "tempfile", "json", "selectors"):
        (tmp_path / f"{name}.py").write_text(trap)
    caller = tmp_path / "scripts" / "caller.py"
    caller.parent.mkdir()
    caller.write_text(CALLER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, caller, str(ROOT / "tests" / "shared"), preloads],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (tmp_path / "executed").exists(), done.stderr
    assert done.returncode == 0, done.stderr


def test_a_server_that_ended_at_its_start_is_no_interruption(monkeypatch):
    """multiprocessing meets the end of its pipe then, which to typer is Ctrl-C."""

    def end_of_pipe(*_):
        raise EOFError

    monkeypatch.setattr("multiprocessing.popen_forkserver.Popen._launch", end_of_pipe)
    with pytest.raises(ConfigError, match="no process can be started: .* raise the limit, and"):
        Isolated(tell_numbers, (1,))


def test_threads_start_processes_at_once_and_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)

    def number_and_variable(number):
        with Isolated(tell_variable, ("PYTHONSAFEPATH",)) as process:
            return process.next(60)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(number_and_variable, range(24)))
    assert told == [told[0]] * 24 and "PYTHONSAFEPATH" not in os.environ
