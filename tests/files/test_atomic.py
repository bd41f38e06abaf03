"""Files and folders are replaced whole or not at all, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from qbench.errors import StoreError
from qbench.files import atomic
from qbench.files.atomic import (
    leftovers,
    require_apart,
    require_place,
    write_text,
    write_whole,
    write_whole_folder,
)
from qbench.files.written_folder import require_writable
from qbench.read_back import unproven


def contents(folder):
    """Every file below a folder, by its path, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_a_file_and_the_folders_above_it(tmp_path):
    assert write_text(tmp_path / "a" / "b.txt", "é") == tmp_path / "a" / "b.txt"
    write_text(tmp_path / "a" / "b.txt", "new")
    assert contents(tmp_path) == {"a/b.txt": "new"}


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:  # as where the system cannot exchange two names
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    write_whole_folder(tmp_path / "model", lambda part: (part / "old").write_text("old"))
    write_whole_folder(tmp_path / "model", lambda part: (part / "new").write_text("new"))
    assert contents(tmp_path) == {"model/new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("write_place", [write_whole, write_whole_folder])
def test_what_was_there_stays_where_writing_fails(tmp_path, write_place):
    target = tmp_path / "target"
    write_whole_folder(target, lambda part: (part / "file").write_text("old"))
    place = target if write_place is write_whole_folder else target / "file"

    def interrupted(part):
        if part.is_dir():
            (part / "file").write_text("half")
        raise KeyboardInterrupt

    def full(part):
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        write_place(place, interrupted)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        write_place(place, full)
    assert contents(tmp_path) == {"target/file": "old"}


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOSPC, "free space, or choose a place that you can write to"),
        (errno.ENOMEM, "memory has run out, and not the disk"),
        (errno.EMFILE, "too many files are open"),
    ],
)
def test_what_keeps_a_file_from_being_written_is_told(tmp_path, number, advice):
    def refused(part):
        raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError, match=f"{os.strerror(number)}.; {advice}"):
        write_whole(tmp_path / "file", refused)


def test_errors_name_what_was_asked_for_and_no_folder_that_is_gone(tmp_path):
    def refused(part):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def damaged(part):
        write_text(part / "config.json", "")
        raise StoreError(f"{part / 'config.json'} is damaged")

    for write, told in [(refused, "/model cannot be"), (damaged, "/model/config.json is damaged")]:
        with pytest.raises(StoreError) as raised, unproven(tmp_path / "model") as place:
            write_whole_folder(place, write)
        assert str(raised.value).startswith(f"{tmp_path}{told}")


@pytest.mark.parametrize(
    "module",
    ["errors", "records", "environment", "files.atomic", "files.written_folder", "models.source"],
)
def test_what_every_command_imports_needs_no_torch(module):
    code = (
        f"import sys, qbench.{module}\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_leftovers_are_looked_for_while_others_write(tmp_path):
    (tmp_path / "samples").mkdir()
    done = threading.Event()

    def write():
        while not done.is_set():
            write_text(tmp_path / "samples" / "rows.jsonl", "{}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert leftovers(tmp_path, seconds=3600) == []
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize(
    "output, problem",
    [
        ("model", "is"),
        ("other/../model", "is"),
        ("link", "is"),
        ("model/q", "lies in"),
        ("link/deep/q", "lies in"),
        (".", "holds"),
        ("model-2", None),
        ("other/model", None),
    ],
)
def test_what_is_read_is_not_written(tmp_path, output, problem):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    if problem is None:
        require_apart(tmp_path / output, tmp_path / "model")
        return
    with pytest.raises(StoreError, match=f"{problem} the model that is read, .*choose another"):
        require_apart(tmp_path / output, tmp_path / "model")


@pytest.mark.parametrize("when", ["half", "whole"])
def test_an_export_that_is_killed_leaves_what_is_known(tmp_path, when):
    """It may be killed while it writes, or while what it wrote is read back."""
    code = """
import os, signal, sys
from pathlib import Path
from qbench.files.atomic import write_whole_folder
from qbench.read_back import unproven

def write(part):
    if sys.argv[2] == "half":
        os.kill(os.getpid(), signal.SIGKILL)

with unproven(Path(sys.argv[1]) / "model") as place:
    write_whole_folder(place, write)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-P", "-c", code, tmp_path, when], check=False)
    assert leftovers(tmp_path) == list(tmp_path.iterdir()) != []
    assert leftovers(tmp_path, seconds=3600) == []


@pytest.mark.parametrize("kind", ["pipe", "stream"])
def test_a_device_is_not_replaced_by_a_file(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    else:  # as /dev/stdout is
        path.symlink_to("/proc/self/fd/1")
    before = path.lstat()
    for write in (require_place, require_writable, lambda path: write_text(path, "lost")):
        with pytest.raises(StoreError, match="it is a device or a stream|was not written by"):
            write(path)
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize(
    "folder, name, reason",
    [
        ("/proc", "x.json", "No such file or directory"),
        ("", "x" * 300, "File name too long"),
        ("", "absent/" + "x" * 300, "File name too long"),
    ],
)
def test_a_place_that_the_system_refuses_is_refused_before_any_work(tmp_path, folder, name, reason):
    if folder and not os.path.isdir(folder):
        pytest.skip(f"no {folder}")
    path = tmp_path / folder / name
    for require in (require_place, require_writable):
        with pytest.raises(StoreError, match="cannot be written: "):
            require(path)
    if os.geteuid() == 0 or not folder:  # else its rights say so already
        with pytest.raises(StoreError, match=reason):
            require_place(path)
    assert not list(tmp_path.iterdir())
