"""What is being written has another name until it is whole, and an error leaves what was there."""

import os

import pytest

from kdnlp.files import model_written_whole, replace_folder, replace_text, written_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_that_cannot_be_written_leaves_the_one_before(tmp_path):
    def fill_the_disk():
        with written_whole(tmp_path / "report.md") as partial:
            partial.write_text("sec")
            raise OSError("full")

    replace_text(tmp_path / "report.md", "first")
    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert names(tmp_path) == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "first"


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A machine without power keeps the name and loses the bytes, where the rename came first."""
    events, sync, rename = [], os.fsync, os.replace

    def noted_sync(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noted_rename(source, target):
        events.append(f"-> {os.path.basename(target)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    replace_text(tmp_path / "a", "text")
    assert events == ["a.partial", "-> a", tmp_path.name]
    events.clear()
    (tmp_path / "partial" / "b").mkdir(parents=True)
    (tmp_path / "partial" / "b" / "c").touch()
    replace_folder(tmp_path / "partial", tmp_path / "whole")
    assert events == ["partial", "b", "c", "-> whole", tmp_path.name]


def test_a_model_appears_with_its_weights_last_and_the_index_after_them(tmp_path, monkeypatch):
    order, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), rename(a, b)))
    files = ("model-1-of-2.safetensors", "config.json", "model.safetensors.index.json")
    with model_written_whole(tmp_path / "out") as partial:
        for name in (*files, "model-2-of-2.safetensors", "z.txt"):
            (partial / name).touch()
        (partial / "templates").mkdir()
        (partial / "templates" / "one.jinja").touch()
        assert names(tmp_path / "out") == ["_partial"]
    assert order[:3] == ["config.json", "one.jinja", "z.txt"]
    assert order[3:] == [files[0], "model-2-of-2.safetensors", files[2]]
    assert (tmp_path / "out" / "templates" / "one.jinja").is_file()
    assert "_partial" not in names(tmp_path / "out")


def test_a_folder_takes_the_place_of_one_that_is_there(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["new"]


def test_what_a_killed_process_left_of_an_older_folder_does_not_stop_the_next(tmp_path):
    for name in ("new", "old", "new.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert names(tmp_path / "old") == ["new"]
