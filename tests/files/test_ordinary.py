"""Files from outside: ordinary ones, of bounded size, that lie where they seem to."""

from __future__ import annotations

import os

import pytest
import torch

from qbench.errors import StoreError
from qbench.files import ordinary
from qbench.files.ordinary import (
    contents_of,
    is_file,
    is_folder,
    json_of,
    ordinary_bytes,
    ordinary_text,
    require_ordinary_files,
)
from qbench.files.shards import read_json
from qbench.files.written_folder import verify, write_index, write_shards


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, and one in a folder inside."""
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    return folder


def link_out(place):
    place.symlink_to("/etc/hostname")


def link_to_a_folder_outside(place):
    place.symlink_to("/etc")


def circle(place):
    place.symlink_to(place.name)


BAD = {
    link_out: "is a link out of its folder",
    link_to_a_folder_outside: "is a link out of its folder",
    circle: "is a link that leads nowhere",
    os.mkfifo: "is no ordinary file",
}


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("place", ["bad.json", "additional_chat_templates/bad.json"])
def test_what_is_no_ordinary_file_is_refused_however_deep(folder, make, place):
    require_ordinary_files(folder)
    make(folder / place)
    with pytest.raises(StoreError, match=BAD[make]):
        require_ordinary_files(folder)
    if make is not link_to_a_folder_outside:
        with pytest.raises(StoreError, match=BAD[make]):
            read_json(folder / place)


def test_links_of_the_hubs_cache_lead_into_its_blobs(tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "inner").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "inner" / "x.json").symlink_to("../../../blobs/1")
    require_ordinary_files(snapshot)
    assert read_json(snapshot / "config.json") == read_json(snapshot / "inner" / "x.json")
    (repository / "secret").write_text("{}")
    (snapshot / "other.json").symlink_to("../../secret")
    with pytest.raises(StoreError, match="is a link out of its folder"):
        require_ordinary_files(snapshot)
    # Without blobs beside it a folder called snapshots is one like any other.
    (tmp_path / "snapshots" / "m").mkdir(parents=True)
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "snapshots" / "m" / "config.json").symlink_to("../../secret")
    with pytest.raises(StoreError, match="is a link out of its folder"):
        read_json(tmp_path / "snapshots" / "m" / "config.json")


def test_sizes_and_numbers_of_files_are_bounded(folder, monkeypatch):
    with pytest.raises(StoreError, match="is larger than 0 MB"):
        ordinary_bytes(folder / "config.json", limit=1)
    monkeypatch.setattr(ordinary, "MOST_ENTRIES", 2)
    with pytest.raises(StoreError, match="holds more than 2 files"):
        list(contents_of(folder))


def test_text_is_utf8_without_halves_of_characters(folder):
    (folder / "config.json").write_bytes(b"\xff")
    with pytest.raises(StoreError, match="is no text in UTF-8"):
        ordinary_text(folder / "config.json")
    (folder / "config.json").write_text(r'{"a": "\ud83d\ude00"}')
    assert read_json(folder / "config.json") == {"a": "\U0001f600"}
    (folder / "config.json").write_text(r'{"a\ud800": 1}')
    with pytest.raises(StoreError, match="surrogates not allowed"):
        read_json(folder / "config.json")


def test_a_name_that_no_system_takes_names_nothing(tmp_path):
    for name in ("y" * 5000, "\ud800", "a\0b"):
        assert not is_folder(tmp_path / name) and not is_file(tmp_path / name)


def test_the_index_knows_files_of_folders_inside(folder):
    write_index(folder, write_shards(folder, {"a": torch.zeros(2)}))
    assert set(verify(folder).values()) == {None} and len(verify(folder)) == 3
    template = folder / "additional_chat_templates" / "tool.jinja"
    template.write_text("y")
    assert "differs" in verify(folder)["additional_chat_templates/tool.jinja"]
    template.unlink()
    template.symlink_to("/etc/hostname")
    assert "link out" in verify(folder)["additional_chat_templates/tool.jinja"]
    (folder / "inner").mkdir()
    (folder / "inner" / "added").write_text("")
    assert verify(folder)["inner/added"] == "is not in the index"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "", b"\xff"])
def test_a_text_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        json_of(text)
