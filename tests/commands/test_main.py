"""The entry point: what keeps a command from ending well is one sentence and an exit code."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys

import pytest

from compared_cells import cell, side
from fresh_python import run_python
from qbench.commands import entry

START = "from qbench.commands.entry import main; main()"


def test_the_package_is_the_command():
    done = run_python("-m", "qbench", "list", "nothing")
    assert done.returncode == 2 and done.stderr.startswith("qbench: "), done
    done = run_python("-m", "qbench", "--version")
    assert done.returncode == 0 and done.stdout.startswith("qbench "), done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full of Linux")
@pytest.mark.parametrize("words", [["list", "methods"], ["list", "methods", "--markdown"]])
def test_a_full_disk_is_one_sentence(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", START, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("qbench: the output: No space left on device; free space")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full of Linux")
def test_warnings_that_find_no_room_end_nothing():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "qbench", "list", "nothing"]
        assert subprocess.run(command, stderr=full).returncode == 2
        code = "from qbench.commands.options import announce, err, say; announce('a' * 9000)\n"
        code += "err.print('more'); say('a result')"
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (0, "a result\n")


def unread(*words):
    """The command with an output that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "qbench", *map(str, words)]
    try:
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)


@pytest.mark.parametrize("words", [["--help"], ["list", "methods"], ["config", "schema"]])
def test_an_output_that_nobody_reads_is_no_failure(words):
    done = unread(*words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verdict_is_the_same_whether_it_is_read_or_not(tmp_path):
    side(tmp_path / "base", cell(damage=0.2))
    side(tmp_path / "worse", cell(damage=0.4, source="1" * 12))
    comment = tmp_path / "comment.md"
    for name, code in (("base", 0), ("worse", 1)):
        done = unread("compare", tmp_path / "base", tmp_path / name, "--markdown", comment)
        assert (done.returncode, done.stderr) == (code, "") and comment.read_text()


@pytest.mark.slow
def test_a_report_that_nobody_reads_is_written(tmp_path):
    side(tmp_path, cell())
    done = unread("report", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(errno.EACCES, "Permission denied", "/there"), "/there: Permission denied; free"),
        (OSError("the server is gone"), "OSError: the server is gone (--debug"),
    ],
)
def test_an_error_of_the_system_is_one_sentence(command, monkeypatch, error, told):
    def refuse(what):
        raise error

    monkeypatch.setattr("qbench.commands.listing.listing", refuse)
    done = command("list", "methods")
    assert done.code == 1 and done.err.startswith(f"qbench: {told}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
)
def test_where_the_system_gives_no_more_that_is_one_sentence(command, monkeypatch, error):
    def refuse(what):
        raise error

    monkeypatch.setattr("qbench.commands.listing.listing", refuse)
    done = command("list", "methods")
    assert done.code == 1 and done.err.startswith(f"qbench: {type(error).__name__}")
    assert "raise the limit" in done.err and done.err.count("\n") == 1
    with pytest.raises(type(error)):
        command("--debug", "list", "methods")


def test_an_interrupt_while_the_commands_are_imported_is_one_sentence(monkeypatch, capsys):
    imported = builtins.__import__

    def interrupted(name, *arguments, **options):
        if name == "qbench.commands.main":
            raise KeyboardInterrupt
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    monkeypatch.setattr(sys, "argv", ["qbench", "run"])
    with pytest.raises(SystemExit) as leaving:
        entry.main()
    assert leaving.value.code == 130
    assert capsys.readouterr().err == f"qbench: {entry.RESUMED}\n"


@pytest.mark.parametrize("words", [["-m", "qbench"], ["qbench"]])
def test_an_interrupt_while_the_package_is_imported_ends_it_quietly(tmp_path, words):
    """Whether the command is a module or a script, and so is no other program that imports us."""
    (tmp_path / "wrapt.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    for name in ("qbench", "other"):
        (tmp_path / name).write_text(START)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}"}
    done = run_python(*words, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    done = run_python("other", cwd=tmp_path, env=environment)
    assert "KeyboardInterrupt" in done.stderr, "the program that imports us decides"


@pytest.mark.parametrize("line", ["run", "--debug run --bits 3", "regress a.py", "compare a.py b"])
def test_what_resumes_says_so(line):
    assert "goes on from here" in entry.interrupted(line.split())


@pytest.mark.parametrize(
    "line", ["", "eval m", "latency", "quantize", "layers m", "compare a b", "run --dry-run"]
)
def test_what_begins_anew_promises_nothing(line):
    assert "begins anew" in entry.interrupted(line.split())


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_the_command_ends_it_in_order(ending, tmp_path):
    program = f"""
import os, signal, tempfile
from qbench.commands import entry, listing
def ended(*words):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        os.kill(os.getpid(), {int(ending)})
        signal.pause()
listing.listing = ended
entry.main()
"""
    done = run_python("-c", program, "list", "methods")
    assert done.returncode == 130 and done.stderr == f"qbench: {entry.ANEW}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, told",
    [
        (["run", "--data", ""], "--data"),
        (["run", "--data="], "--data"),
        (["run", "--out", "", "--dry-run"], "--out"),
        (["report", ""], "an argument"),
        (["compare", "", "run"], "an argument"),
        (["eval", ""], "an argument"),
    ],
)
def test_an_empty_word_is_not_this_folder(command, words, told):
    done = command(*words)
    assert done.code == 2
    assert done.err == f"qbench: {told} '' names nothing; give a name, or leave it out\n"


@pytest.mark.parametrize("words", [("status", "r\udcff"), ("run", "--model=m\udcff")])
def test_a_name_that_is_no_text_is_refused(command, words):
    done = command(*words)
    assert done.code == 2 and "\\udcff' holds bytes that are no text in UTF-8" in done.err


@pytest.mark.parametrize("line", ["data: ''", "out: ''", "plugin: ['']", "model: ''"])
def test_an_empty_text_of_a_grid_file_is_not_this_folder(command, tmp_path, line):
    path = tmp_path / "grid.yaml"
    path.write_text(line + "\n")
    done = command("run", "--config", path, "--dry-run")
    key, _, value = line.partition(": ")
    assert done.code == 2 and f"grid.yaml': {key} {value} names nothing; give a value" in done.err


def test_two_results_in_one_file_are_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.x").write_text("kept")
    places = ["--json", "same.x", "--markdown", tmp_path / "same.x"]
    done = command("regress", "gptq", "--base", "rtn", *places)
    assert done.code == 2 and "same.x is given for two files; choose another" in done.err
    assert (tmp_path / "same.x").read_text() == "kept"


@pytest.mark.parametrize("columns", ["0", "19"])
def test_columns_in_which_nothing_can_be_shown_are_not_counted(columns):
    done = run_python("-m", "qbench", "list", "methods", env=os.environ | {"COLUMNS": columns})
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) > 20, done
