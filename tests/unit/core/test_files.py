"""Files: locks, atomic writes and partial results."""

import os
from threading import Thread

import pytest

from solm.cli.checks import out_file
from solm.core.errors import DamagedFileError, RunMismatchError, SolmError
from solm.core.files import read_model, read_object, resumable, write_bytes
from solm.core.sparsity import SparsityConfig


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(SolmError, match="cannot write"):
        write_bytes(path / "below", b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"window": ')
    with pytest.raises(DamagedFileError, match="damaged or of another version"):
        read_model(path, SparsityConfig)


def test_a_pipe_is_written_to_and_stays_alone(tmp_path):
    pipe, link, found = tmp_path / "pipe", tmp_path / "link", []
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        reader = Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
        reader.start()
        with resumable(path) as partial:
            assert partial is None
            out_file(path)
            write_bytes(path, b"new")
        reader.join(10)
    assert found == [b"new", b"new"]
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


@pytest.mark.parametrize("old", [True, False])
def test_a_symlink_stays_and_its_target_is_written(tmp_path, old):
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to("there/a.json")
    if old:
        target.write_bytes(b"old")
    with resumable(link) as partial:
        assert partial == tmp_path / "there" / "a.json.partial"
        write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_two_processes_do_not_work_on_one_result(tmp_path):
    with resumable(tmp_path / "a.json") as partial:
        assert partial == tmp_path / "a.json.partial"
        with (
            pytest.raises(RunMismatchError, match=r"another process is working on a\.json"),
            resumable(tmp_path / "a.json"),
        ):
            pass
        with resumable(tmp_path / "b.json"), resumable(None) as nothing:
            assert nothing is None
    with resumable(tmp_path / "a.json"):
        pass


def test_what_was_found_is_kept_until_the_result_is_written(tmp_path):
    def interrupted():
        with resumable(tmp_path / "a.json") as partial:
            partial.write_text("found")
            raise SolmError("the disk is full")

    with pytest.raises(SolmError, match="the disk is full"):
        interrupted()
    partial = tmp_path / "a.json.partial"
    assert partial.read_text() == "found"
    with resumable(tmp_path / "a.json") as again:
        assert again.read_text() == "found"
    assert not partial.exists()


def test_an_interruption_says_whether_something_is_kept(tmp_path):
    def interrupted(found):
        with resumable(tmp_path / "a.json") as partial:
            if found:
                partial.write_text("found")
            raise KeyboardInterrupt

    for found, said in ((False, ()), (True, ("finished parts are kept. The same command continues",))):
        with pytest.raises(KeyboardInterrupt) as ended:
            interrupted(found)
        assert ended.value.args == said


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (b"[1]", DamagedFileError, "config.json is damaged: it holds no JSON object"),
        (b"{", DamagedFileError, "config.json is damaged: it is not JSON"),
        (b"[" * 100_000, DamagedFileError, "config.json is damaged: it is not JSON"),
        (None, SolmError, "cannot read .*config.json: No such file or directory"),
    ],
)
def test_what_holds_no_json_object_is_refused(content, error, reason, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=reason):
        read_object(path)
