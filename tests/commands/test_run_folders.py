"""Folders of runs that are damaged, odd, or not ours to write: every command says so in words."""

from __future__ import annotations

import errno
import os

import pytest

from compared_cells import cell, side


@pytest.fixture
def run(tmp_path):
    """The folder of a run: an unquantized cell, one of gptq and one of rtn."""
    side(tmp_path / "run", cell("none", None, damage=0), cell(), cell("rtn"))
    return tmp_path / "run"


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be made, as on a disk that is only read; root would be let through."""
    opened = os.open

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    def read_alone(path, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opened(path, flags, *arguments, **options)

    for name in ("mkdir", "replace"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "open", read_alone)


def tree(folder):
    """Every path below a folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


# ---- folders that are only read


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["status", "RUN"], "2 cells: 2 ok; nobody is at work"),
        (["compare", "RUN:gptq", "RUN:gptq"], "undecided: "),
        (["baseline", "show", "RUN"], "gptq 3b g64"),
    ],
)
def test_a_folder_that_cannot_be_written_is_read(command, run, read_only, arguments, shown):
    (rtn,) = (r for r in records_of(run) if '"rtn"' in r.read_text())
    damage(rtn)
    before = tree(run)
    done = command(*[word.replace("RUN", str(run)) for word in arguments])
    assert done.code == 0 and shown in done.out
    assert "was changed after it was written" in done.out + done.err
    assert tree(run) == before


def test_a_report_names_the_folder_that_it_cannot_write(command, run, read_only):
    before = tree(run)
    done = command("report", run)
    assert done.code == 2 and done.err == (
        f"qbench: the report of {run} is written into it, and it cannot be written (Read-only file "
        "system); copy it to a place that you can write to, and report on the copy\n"
    )
    assert tree(run) == before


def records_of(run):
    """The files of a run's records."""
    return sorted((run / "records").glob("*.json"))


def damage(path):
    """Change a record after it was written."""
    with open(path, "r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace('"status": "ok"', '"status": "no"'))


# ---- files that are none


def link_to_itself(path):
    path.symlink_to(path.name)


def link_out(path):
    (path.parents[3] / "outside").write_text("{}\n")
    path.symlink_to(path.parents[3] / "outside")


ODD_FILES = {
    "missing": lambda path: None,
    "a link to itself": link_to_itself,
    "a link out": link_out,
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "deep": lambda path: path.write_text("[" * 100_000),
}


@pytest.mark.parametrize("put", ODD_FILES.values(), ids=ODD_FILES)
def test_samples_that_are_no_file_are_none(command, run, tmp_path, put):
    (gptq,) = (r for r in records_of(run) if '"gptq"' in r.read_text())
    path = run / "samples" / gptq.stem / "wikitext.jsonl"
    path.unlink()
    put(path)
    done = command("compare", f"{run}:rtn", f"{run}:gptq", "--allow", "calibration")
    assert done.code in (0, 2) and "wikitext" in done.out, done
    place = ("--baselines", tmp_path / "baselines")
    saved = command("baseline", "save", f"{run}:gptq", "mine", *place)
    assert saved.code == (0 if path.is_file() and not path.is_symlink() else 2), saved
    assert "Traceback" not in saved.err
