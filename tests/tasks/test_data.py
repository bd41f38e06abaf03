"""Where data comes from: layouts, names, hashes and messages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from places import REAL_DATA, needs_real_data
from qbench.errors import ConfigError, DataError
from qbench.tasks import hub
from qbench.tasks.data import Source, fetch, inventory, open_source, table, tables
from qbench.tasks.folder import FolderSource, write_parquet
from qbench.tasks.mini_source import EMBEDDED, MiniSource


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    for declared in tables().values():
        for split in declared.splits if declared.example else ():
            write_parquet(
                [declared.example] * 2, tmp_path / "set" / declared.folder / f"{split}.parquet"
            )
    return FolderSource(tmp_path / "set")


def test_auto_takes_the_folder_that_the_environment_names(monkeypatch, folder):
    monkeypatch.setenv("QBENCH_DATA", str(folder.folder))
    assert open_source("auto") == folder
    assert open_source("mini") == MiniSource()


def test_auto_without_a_folder_is_mini_and_never_the_hub(monkeypatch):
    monkeypatch.delenv("QBENCH_DATA", raising=False)
    assert open_source("auto") == MiniSource()


def test_hub_and_folders_are_chosen_by_name(folder):
    assert open_source("hub") == hub.HubSource()
    assert open_source(str(folder.folder)) == folder


@pytest.mark.parametrize("said_by", ["--data", "QBENCH_DATA"])
def test_a_folder_that_is_not_there(monkeypatch, said_by):
    monkeypatch.setenv("QBENCH_DATA", "nowhere")
    with pytest.raises(
        DataError, match=f"{said_by}='nowhere' is no folder; give auto, mini, hub or a folder"
    ):
        open_source("nowhere" if said_by == "--data" else "auto")


def test_folder_rows_keep_the_hubs_columns(folder):
    for name in ("gsm8k", "arc_easy", "arc_challenge", "mmlu"):
        assert folder.rows(name, "test")[1] == table(name).example
    assert folder.text("wikitext") == [" = A title = \n"] * 2
    assert folder.text("calibration") == ["Some text."] * 2


def test_rows_have_unix_line_ends(tmp_path):
    """gsm8k's answer is what follows `####` up to the line's end: with \\r it matches nothing."""
    row = {"question": "How many?\r\nSay it.", "answer": "Two.\r\n#### 2\r\n"}
    write_parquet([row], tmp_path / "gsm8k" / "test.parquet")
    (read,) = FolderSource(tmp_path).rows("gsm8k", "test").to_list()
    assert read == {"question": "How many?\nSay it.", "answer": "Two.\n#### 2\n"}


def test_folder_names(folder):
    assert folder.label == "dir:set"
    assert f"({', '.join(tables())})" in folder.describe()
    assert list(tables())[:2] == ["wikitext", "c4"] and list(tables())[-1] == "calibration"
    assert folder.task_name("wikitext") == "wikitext"
    assert [folder.table_name(name) for name in ("calibration", "wikitext", "mmlu")] == [
        "c4_sample",
        "wikitext2",
        "mmlu",
    ]


def test_folder_hash_is_of_the_content(folder):
    before = folder.sha256("mmlu")
    assert len(before) == 64 and before == folder.sha256("mmlu") != folder.sha256("gsm8k")
    write_parquet([table("mmlu").example], folder.folder / "mmlu" / "dev.parquet")
    assert folder.sha256("mmlu") != before


def test_missing_table_names_the_path_and_what_is_expected(folder):
    path = folder.folder / "mmlu" / "test.parquet"
    path.unlink()
    assert folder.splits("mmlu") == ("dev", "validation")
    with pytest.raises(
        DataError,
        match=r"test\.parquet is missing: expected a parquet file with the columns question",
    ):
        folder.rows("mmlu", "test")
    for split in ("dev", "validation"):
        (path.parent / f"{split}.parquet").unlink()
    with pytest.raises(DataError, match=r"dev\.parquet is missing"):
        folder.sha256("mmlu")


def test_malformed_files(folder):
    path = folder.folder / "gsm8k" / "test.parquet"
    write_parquet([{"question": "?"}], path)
    with pytest.raises(DataError, match="lacks the column answer; it has question"):
        folder.rows("gsm8k", "test")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="is not a readable parquet file"):
        folder.rows("gsm8k", "test")


def test_empty_file(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"text": pa.array([], pa.string())}), folder.folder / "c4_sample" / "train.parquet"
    )
    with pytest.raises(DataError, match="has no rows"):
        folder.text("calibration")


def test_unknown_table_and_split(folder):
    with pytest.raises(ConfigError, match=r"unknown table 'gsm8'. Did you mean 'gsm8k'\?"):
        folder.rows("gsm8", "test")
    with pytest.raises(ConfigError, match="unknown split of gsm8k 'dev'"):
        folder.rows("gsm8k", "dev")


def test_mini_names_say_that_it_is_not_the_real_thing():
    mini = MiniSource()
    assert mini.label == "mini" and "not the real benchmarks" in mini.describe()
    assert [mini.task_name(name) for name in ("gsm8k", "wikitext", "divergence")] == [
        "mini-gsm8k",
        "mini-text",
        "mini-divergence",
    ]
    assert mini.table_name("calibration") == "pydoc-calibration" != mini.table_name("wikitext")
    assert mini.table_name("arc_easy") == "mini-arc_easy"


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy", "arc_challenge", "mmlu"])
def test_mini_rows_have_the_hubs_columns(name):
    mini = MiniSource()
    for split in mini.splits(name):
        rows = mini.rows(name, split)
        assert len(rows) and set(tables()[name].columns) <= set(rows.column_names)
    assert len(mini.sha256(name)) == 64


def test_mini_texts_are_two():
    mini = MiniSource()
    assert mini.text("calibration") and mini.text("wikitext")
    assert mini.sha256("calibration") != mini.sha256("wikitext")


def test_mini_has_no_examples_for_mmlu():
    with pytest.raises(
        DataError, match="the mini data has no split 'dev' of mmlu, only test; use --data DIR"
    ):
        MiniSource().rows("mmlu", "dev")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [MiniSource(), pytest.param(FolderSource(REAL_DATA), marks=needs_real_data)],
    ids=["mini", "real"],
)
def test_inventory_lists_every_table(source: Source):
    rows = inventory(source)
    assert {row["table"] for row in rows} == set(tables())
    expected = set(EMBEDDED) if source == MiniSource() else set(tables()) - {"c4", "hellaswag"}
    assert {row["table"] for row in rows if row["rows"] is not None} == expected
    for row in rows:
        assert row["licence"]
        if row["table"] in expected:
            assert row["rows"] > 0 and len(row["sha256"]) == 12


def test_inventory_says_what_is_missing(tmp_path):
    assert all(
        row["rows"] is None and row["sha256"] == "" for row in inventory(FolderSource(tmp_path))
    )


def test_fetch_writes_a_folder_that_reads_back(folder, tmp_path):
    lines: list[str] = []
    fetch(tmp_path / "copy", source=folder, progress=lines.append)
    copy = FolderSource(tmp_path / "copy")
    assert len(lines) == sum(len(declared.splits) for declared in tables().values())
    for name, declared in tables().items():
        assert copy.splits(name) == declared.splits
        assert copy.sha256(name) == folder.sha256(name)
    assert copy.rows("arc_easy", "train").to_list() == folder.rows("arc_easy", "train").to_list()
    assert (tmp_path / "copy" / "sources.json").is_file()
    assert not list((tmp_path / "copy").rglob(".*"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.revision.cache_clear()
    yield tmp_path
    hub.revision.cache_clear()


def test_hub_without_a_network_says_what_to_do(offline):
    said = (
        r"'openai/gsm8k' cannot be had from the hub \(ConnectionError: no route\); "
        ".* use --data mini, .* data fetch"
    )
    with pytest.raises(DataError, match=said):
        hub.HubSource().rows("gsm8k", "test")
    with pytest.raises(DataError, match="'allenai/c4' cannot be had"):
        hub.HubSource().text("calibration")


def test_hub_without_a_network_takes_the_commit_of_the_cache(offline):
    ref = offline / "datasets--openai--gsm8k" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("0123456789abcdef")
    assert hub.HubSource().table_name("gsm8k") == "openai/gsm8k@0123456"


def test_hub_data_are_read_at_the_resolved_commit(monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return (
            iter([{"text": str(index)} for index in range(3000)])
            if options.get("streaming")
            else Dataset.from_list([{"question": "a\r\nb", "choices": ["c\r\n", "d"]}])
        )

    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee" * 6)
    )
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for cached in (hub.revision, hub._rows, hub._texts_of_shard):
        cached.cache_clear()
    source = hub.HubSource()
    rows = source.rows("mmlu", "dev").to_list()
    assert rows == [{"question": "a\nb", "choices": ["c\n", "d"]}]
    assert asked[0] == (("cais/mmlu", "all"), {"split": "dev", "revision": "c0ffee" * 6})
    assert len(source.text("calibration")) == 2000 and len(source.text("c4")) == 1100
    assert asked[1][0] == ("allenai/c4",) and asked[1][1]["revision"] == "c0ffee" * 6
    files = [options["data_files"]["only"] for _, options in asked[1:]]
    assert "train" in files[0] and "validation" in files[1], "never calibrated on what is evaluated"
    assert source.table_name("calibration") == "allenai/c4@c0ffeec"
    for cached in (hub.revision, hub._rows, hub._texts_of_shard):
        cached.cache_clear()


@needs_real_data
def test_real_data_has_the_published_sizes():
    source = FolderSource(REAL_DATA)
    sizes = {
        name: len(source.rows(name, "test"))
        for name in ("gsm8k", "arc_easy", "arc_challenge", "mmlu")
    }
    assert sizes == {"gsm8k": 1319, "arc_easy": 2376, "arc_challenge": 1172, "mmlu": 14042}
    assert len(set(source.rows("mmlu", "test")["subject"])) == 57
