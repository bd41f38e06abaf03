"""Folders of runs that are damaged, odd, or not ours to write: every command says so in words."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest

from compared_cells import cell, side
from qbench.experiment.record_file import checksum
from qbench.reports.registry import FOLDERS
from tiny_runs import empty_picture


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


# ---- records that say what no run says


def rewritten(run, change):
    """The file of a record of gptq that was changed, with a checksum that fits."""
    (path,) = (r for r in records_of(run) if '"gptq"' in r.read_text())
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body | {"checksum": checksum(body)}))
    return path


IMPOSSIBLE = {
    "packages": ({"environment": {"packages": ["torch"]}}, "environment: .*packages"),
    "a version": ({"environment": {"packages": {"torch": [2]}}}, "packages.torch"),
    "hardware": ({"environment": {"hardware": "Xeon"}}, "environment: .*hardware"),
    "protocol": ({"protocol": {"name": ["quick"]}}, "protocol: .*name"),
    "bits": ({"bits_per_weight": {"total": 1e308}}, "bits_per_weight.total: "),
    "seconds": ({"quantize_seconds": 1e300}, "quantize_seconds: "),
    "bytes": ({"bytes_on_disk": 10**200}, "bytes_on_disk: "),
    "a long number": ({"log": {"block 0": {"initial": 10**400}}}, "of 401 digits"),
}


def state_of(folder):
    """Every path below a folder, with its content and when it was changed."""
    states = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        states[path] = (content, path.stat().st_mtime_ns)
    return states


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "RUN", "RUN"),
        ("compare", "RUN/records/ID.json", "RUN"),
        ("baseline", "show", "RUN"),
        ("baseline", "save", "RUN:rtn", "kept"),
        ("status", "RUN"),
        ("status", "RUN", "--json"),
        ("gc", "RUN"),
    ],
)
def test_who_only_reads_changes_nothing(command, run, tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewritten(run, lambda body: body.update(reason="none"))
    path.write_text(path.read_text().replace('"none"', '"another"'))
    sound = next(p.stem for p in records_of(run) if '"rtn"' in p.read_text())
    there = state_of(run)
    told = []
    for _ in range(2):
        typed = [word.replace("RUN", str(run)).replace("ID", sound) for word in words]
        done = command(*typed)
        assert done.code in (0, 2) and "Traceback" not in done.err, done
        told.append("was changed after it was written" in done.err + done.out)
        assert state_of(run) == there
    assert told == [words[0] != "gc"] * 2, "the warning is there each time"


def test_a_report_writes_itself_and_moves_nothing(command, run, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    path = rewritten(run, lambda body: body.update(reason="none"))
    path.write_text(path.read_text().replace('"none"', '"another"'))
    there = state_of(run / "records")
    for _ in range(2):
        done = command("report", run)
        assert done.code == 0 and f"record {path.name} was changed" in done.err, done
    assert state_of(run / "records") == there
    assert not (run / "quarantine").exists() and not (run / "claims").exists()


@pytest.mark.parametrize("change, told", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_record_that_no_run_writes_is_damaged(command, run, change, told):
    path = rewritten(run, lambda body: body.update(change))
    there = state_of(run)
    for _ in range(2):
        done = command("compare", f"{run}:rtn", f"{run}:rtn")
        assert done.code in (0, 2) and "wikitext" in done.out, done
        assert re.search(f"warning: record {path.name} .*{told}.*; it is left out", done.err)
        assert state_of(run) == there, "who compares changes nothing"


@pytest.mark.slow
def test_the_largest_numbers_of_a_record_are_shown(command, run):
    def change(body):
        body["bits_per_weight"] = {"total": 1e6, "codes": 1e6}
        body |= {"bytes_on_disk": 10**18, "quantize_seconds": 1e15, "quantize_peak_bytes": 10**18}
        body["log"] = {"block 0": {"initial": 10**299, "final": 1e-308, "losses": [1e308, 1]}}

    rewritten(run, change)
    done = command("report", run)
    assert done.code == 0 and not re.search(r"\d{30}", done.out), done
    done = command("compare", f"{run}:rtn", f"{run}:gptq", "--allow", "calibration")
    assert "wikitext" in done.out and not done.err, done


# ---- links in the folder of a run


@pytest.mark.parametrize("kind", ["folder", "file", "nothing", "itself"])
def test_a_link_is_removed_as_a_link(command, run, tmp_path, kind):
    target = run / "reference" if kind == "itself" else tmp_path / "elsewhere"
    (run / "reference").symlink_to(target)
    if kind == "folder":
        target.mkdir()
        (target / "weights").write_bytes(bytes(5_000_000))
    elif kind == "file":
        target.write_bytes(bytes(5_000_000))
    listed = command("gc", run)
    assert listed.code == 0 and "1 leftovers, 0.0 MB" in listed.out, listed
    removed = command("gc", run, "--delete")
    assert removed.code == 0 and "1 leftovers, 0.0 MB" in removed.out, removed
    assert not os.path.lexists(run / "reference")
    assert kind not in ("folder", "file") or target.exists()


def test_what_cannot_be_removed_is_a_sentence(command, run, monkeypatch):
    (run / "reference").mkdir()

    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    done = command("gc", run, "--delete")
    assert done.code == 2 and "reference cannot be read or removed (Permission denied)" in done.err


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("target", ["outside", "missing", "../outside"])
def test_a_report_is_written_in_the_folder_alone(command, run, tmp_path, name, target):
    (tmp_path / "outside").mkdir()
    link = target if target.startswith("..") else tmp_path / target
    (run / name).symlink_to(link)
    done = command("report", run)
    assert done.code == 2 and f"{run / name} is a link out of the run's folder, to " in done.err
    assert not list((tmp_path / "outside").iterdir())
    assert not (run / "index.html").exists() and not (tmp_path / "missing").exists()
