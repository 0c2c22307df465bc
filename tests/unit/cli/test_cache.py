"""`solm cache` lists and removes what solm has made, and nothing else."""

import os
import time

import pytest

from solm.cli.cache import cache, entries
from solm.core.errors import SolmError
from solm.core.files import cache_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("SOLM_CACHE", str(folder))
    monkeypatch.setattr("solm.cli.cache.downloads", list)  # the user's own are not of this test
    for name, size in (
        ("model-auto-0123456789abcdef.weights", 3000), ("engine-0123456789abcdef.so", 2000), ("notes.txt", 10),
        (".model-auto-0123456789abcdef.weights.abc", 70), ("tmpab12cd.so", 60), ("engine-x.so", 1),
        ("m-0123456789abcdef.stepclock.json", 30), ("m-0123456789abcdef.calibration.json", 20),
    ):  # fmt: skip
        (folder / name).write_bytes(b"x" * size)
    (folder / "tiny-0123456789abcdef").mkdir()
    (folder / "tiny-0123456789abcdef" / "config.json").write_text("x" * 500)
    (folder / "tokenizer-0123456789abcdef").mkdir()
    (folder / "tokenizer-0123456789abcdef" / "tokenizer.json").write_text("x" * 400)
    (folder / "mine-0123456789abcdef").mkdir()  # no model
    (folder / "link.weights").symlink_to(folder / "notes.txt")
    return folder


def test_entries_are_listed_with_their_kinds_and_sizes(folder):
    assert [(entry.path.name, entry.kind, entry.nbytes) for entry in entries(folder)] == [
        ("model-auto-0123456789abcdef.weights", "repacked weights", 3000),
        ("engine-0123456789abcdef.so", "built engine", 2000),
        ("tiny-0123456789abcdef", "converted model", 500),
        ("tokenizer-0123456789abcdef", "tokenizer", 400),
        ("m-0123456789abcdef.stepclock.json", "step times", 30),
        ("m-0123456789abcdef.calibration.json", "calibration", 20),
    ]
    told = cache().content
    assert (told["folder"], told["bytes"], len(told["entries"])) == (str(folder), 5950, 6)


def test_what_nobody_finished_is_listed_after_an_hour(folder):
    for name in (".model-auto-0123456789abcdef.weights.abc", "tmpab12cd.so"):
        os.utime(folder / name, (time.time() - 7200, time.time() - 7200))
    assert [entry.nbytes for entry in entries(folder) if entry.kind == "unfinished"] == [70, 60]


def test_some_or_all_are_removed_and_nothing_else(folder):
    assert cache("clear", ["engine-0123456789abcdef.so"]).content["removed"] == [
        {"name": "engine-0123456789abcdef.so", "kind": "built engine", "bytes": 2000}
    ]
    assert len(cache("clear").content["removed"]) == 5
    assert sorted(path.name for path in folder.iterdir()) == [
        ".model-auto-0123456789abcdef.weights.abc", "engine-x.so", "link.weights", "mine-0123456789abcdef", "notes.txt",
        "tmpab12cd.so",
    ]  # fmt: skip


def test_mistakes_are_named(folder):
    for arguments, words in (
        (("drop",), "unknown action 'drop'; choose list or clear"),
        (("list", ["x"]), "NAMES: they go with clear"),
        (("clear", ["notes.txt"]), "nothing called 'notes.txt' is kept"),
    ):
        with pytest.raises(SolmError, match=words):
            cache(*arguments)
    assert len(entries(folder)) == 6


def test_a_folder_that_is_not_there_holds_nothing(folder, monkeypatch):
    monkeypatch.setenv("SOLM_CACHE", str(folder / "none"))
    assert cache("clear").content["removed"] == []


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("SOLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "solm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "solm"
