"""Records: atomic, checked, and never silently dropped."""

from __future__ import annotations

import json

import pytest

from qbench.contracts import Scheme
from qbench.errors import StoreError
from qbench.experiment.store import Store, read_records
from qbench.files.atomic import write_text
from qbench.records import CalibrationSpec, Cell, Record, Score, TaskSpec


def cell(**changes):
    fields = {
        "model": "m",
        "revision": "r",
        "method": "rtn",
        "params": {"clip": "none"},
        "source": "0" * 12,
        "scheme": Scheme(3, 64),
        "calibration": CalibrationSpec(data="c4", sha256="0", samples=2, length=8, dtype="float32"),
        "tasks": (TaskSpec(name="arc_easy", data="d", sha256="1", limit=5),),
        "dtype": "float32",
        "seed": 0,
    }
    return Cell(**(fields | changes))


def record(**changes):
    made = cell(**changes)
    score = Score(task="arc_easy", metric="acc", value=0.5, stderr=0.1, n=5, higher_is_better=True)
    return Record(
        id=made.id, cell=made, status="ok", scores=(score,), bits_per_weight={"total": 3.25}
    )


def test_a_record_survives_the_round_trip(tmp_path):
    store = Store(tmp_path)
    store.write_record(record())
    assert store.read_records() == ([record()], [])
    body = json.loads((tmp_path / "records" / f"{record().id}.json").read_text())
    assert body["schema"] == 1 and body["cell"]["scheme"] == {
        "bits": 3,
        "group_size": 64,
        "symmetric": False,
    }


@pytest.mark.parametrize("name", ["model", "method"])
def test_names_that_no_table_can_show_are_complaints(tmp_path, name):
    store = Store(tmp_path)
    store.write_record(record())
    store.write_record(record(**{name: "y" * 100_000}))
    records, complaints = store.read_records()
    assert records == [record()]
    assert len(complaints) == 1 and "of 100,000 characters; at most 2,000" in complaints[0]


def test_the_id_is_the_content(tmp_path):
    assert cell().id == cell().id and len(cell().id) == 12
    assert cell().id != cell(seed=1).id != cell(source="1" * 12).id
    judged_otherwise = cell(tasks=(), dtype="bfloat16")
    assert judged_otherwise.id != cell().id and judged_otherwise.artifact == cell().artifact
    assert cell(seed=1).artifact != cell().artifact
    assert cell().label == "rtn 3b g64 clip=none"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[: len(text) // 2], "is truncated or no JSON"),
        (lambda text: text.replace("0.5", "0.9"), "was changed after it was written"),
        (lambda text: text.replace('"schema": 1', '"schema": 0'), "is of schema 0, not 1"),
        (lambda text: text.replace("0.5", "NaN"), "holds NaN, which is no number"),
        (lambda text: text.replace("0.5", "1e400"), "is truncated or no JSON"),
        (lambda text: "[" * 100_000, "is truncated or no JSON"),
        (lambda text: '{"schema": "\\ud800"}', "is of schema"),
        (lambda text: "[]", "is of schema None"),
    ],
)
def test_a_record_that_cannot_be_trusted_goes_to_quarantine(tmp_path, damage, message):
    store = Store(tmp_path)
    store.write_record(record())
    path = tmp_path / "records" / f"{record().id}.json"
    path.write_text(damage(path.read_text()))
    found, complaints = store.read_records()
    assert found == [] and len(complaints) == 1
    assert message in complaints[0] and "moved to" in complaints[0]
    assert (tmp_path / "quarantine" / path.name).is_file() and not path.exists()
    assert store.read_records() == ([], [])


def test_a_record_of_a_newer_qbench_stays_where_it_is(tmp_path):
    store = Store(tmp_path)
    store.write_record(record())
    path = tmp_path / "records" / f"{record().id}.json"
    text = path.read_text().replace('"schema": 1', '"schema": 2')
    path.write_text(text)
    for _ in range(2):
        found, complaints = store.read_records()
        assert found == [] and "newer than 1" in complaints[0] and "stays" in complaints[0]
    with pytest.raises(StoreError, match="newer than 1.* another --out"):
        store.write_record(record())
    assert path.read_text() == text and not (tmp_path / "quarantine").exists()


def test_numbers_that_cannot_be_are_no_record():
    for field, value in [("stderr", -0.1), ("n", -1), ("value", float("nan"))]:
        fields = record().scores[0].model_dump() | {field: value}
        with pytest.raises(ValueError, match=field):
            Score(**fields)


def test_a_quarantine_that_is_a_file_is_named(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "records" / "broken.json").write_text("{")
    (tmp_path / "quarantine").write_text("")
    with pytest.raises(StoreError, match="cannot be moved to .*quarantine"):
        store.read_records()


def test_a_record_under_another_name_is_not_trusted(tmp_path):
    store = Store(tmp_path)
    store.write_record(record())
    path = tmp_path / "records" / f"{record().id}.json"
    path.rename(path.with_name("000000000000.json"))
    assert "is named" in store.read_records()[1][0]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written .*; choose another with --out"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="holds no records"):
        read_records(tmp_path)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        StoreError, match="cannot be written \(No space left on device\); free space"
    ):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
