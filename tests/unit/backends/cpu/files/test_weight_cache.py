"""Repacked weights that are kept: mapped at the next start, replaced where anything about them has changed."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as TensorType

from helpers.gguf_files import WIDE, write_gguf
from solm.backends.cpu.files import weight_cache
from solm.backends.cpu.files.layout import layout_of
from solm.backends.cpu.files.sources import GgufFile
from solm.backends.cpu.files.weight_cache import SUFFIX, load_weights
from solm.backends.cpu.library import library
from solm.core.errors import SolmError
from solm.core.files import cache_folder

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_gguf(path, "llama", lambda name: TensorType.Q6_K, **WIDE)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    built = library()  # before the folder changes, so that it is not built anew
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path / "cache"))
    assert built is library()
    return tmp_path / "cache"


def load(source, precision="auto", threads=2):
    """The weights, whether they were repacked, and what they are."""
    layout, done = layout_of(source, precision), []
    weights = load_weights(library(), source, precision, layout, threads, lambda *parts: done.append(parts))
    assert weights.shape == (layout.nbytes,)
    assert weights.flags.writeable is not bool(kept(cache_folder()))
    assert weights.ctypes.data % 64 == 0
    return weights.copy(), bool(done)


def kept(folder):
    return sorted(folder.glob("*" + SUFFIX))


def test_the_next_start_maps_what_the_first_has_repacked(path, folder):
    first, repacked = load(GgufFile(path))
    assert repacked
    assert [file.name for file in kept(folder)] == [f"tiny-auto-{GgufFile(path).identity[:16]}.weights"]
    again, repacked = load(GgufFile(path))
    assert not repacked
    np.testing.assert_array_equal(first, again)
    assert load(GgufFile(path), "int8")[1]
    assert not load(GgufFile(path), "int8")[1]
    assert not load(GgufFile(path))[1]
    assert len(list(folder.iterdir())) == 2  # nothing unfinished is left


def test_a_flipped_byte_anywhere_is_noticed(path, folder):
    first, _ = load(GgufFile(path))
    (file,) = kept(folder)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start = len(content) - len(first)
    places = [0, 4, 8, 8 + length // 2, 7 + length, start, start + len(first) // 2, -1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 16
        file.write_bytes(changed)
        found, repacked = load(GgufFile(path))
        assert repacked, place
        np.testing.assert_array_equal(found, first)
        assert file.read_bytes()[start:] == content[start:]  # it is whole again
    for size in (0, 10, start, len(content) - 1):
        file.write_bytes(content[:size])
        assert load(GgufFile(path))[1], size
    file.write_bytes(content + b"x")
    assert load(GgufFile(path))[1]
    assert not load(GgufFile(path))[1]


def test_a_changed_file_code_or_layout_is_noticed(path, folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy.gguf"
    shutil.copy(path, copy)
    assert load(GgufFile(copy))[1]
    os.utime(copy, ns=(1, 1))
    assert load(GgufFile(copy))[1]
    assert not load(GgufFile(copy))[1]
    monkeypatch.setattr(weight_cache, "sources_digest", lambda: "other")
    assert load(GgufFile(copy))[1]
    assert not load(GgufFile(copy))[1]
    monkeypatch.setattr("solm.backends.cpu.files.layout.Layout.digest", lambda self: "other")
    assert load(GgufFile(copy))[1]
    assert len(kept(folder)) == 1


def test_weights_that_do_not_fit_into_memory_are_made_in_the_file(path, folder, monkeypatch):
    first, _ = load(GgufFile(path))
    (file,) = kept(folder)
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(weight_cache, "free_memory", lambda: len(first) - 1)
    monkeypatch.setattr("solm.backends.cpu.files.repack._zeroed", lambda nbytes: pytest.fail("it does not fit"))
    found, repacked = load(GgufFile(path))
    assert repacked
    np.testing.assert_array_equal(found, first)
    assert file.read_bytes() == content
    assert not load(GgufFile(path))[1]
    assert list(folder.iterdir()) == [file]


def test_weights_that_fit_nowhere_are_an_error(path, folder, monkeypatch):
    def full(file, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "free_memory", lambda: 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SolmError, match=r"cannot write .*tiny-auto-.*: No space left on device"):
        load(GgufFile(path))
    assert list(folder.iterdir()) == []


def test_processes_may_start_at_once(path, folder):
    """Before anything is kept."""
    processes = multiprocessing.get_context("fork")
    with processes.Pool(3) as pool:
        found = pool.map(_sum_of, [path] * 3)
    assert set(found) == {int(load(GgufFile(path))[0].sum())}
    assert len(kept(folder)) == 1
    assert not load(GgufFile(path))[1]


def _sum_of(path):
    return int(load(GgufFile(path))[0].sum())


def test_checksums_change_with_every_bit_and_not_with_the_threads():
    content = np.random.default_rng(1).integers(0, 256, (1 << 21) + 13, np.uint8)
    total = library().solm_checksum(content.ctypes.data, len(content), 1)
    assert total == library().solm_checksum(content.ctypes.data, len(content), 3)
    for place in (0, 7, 8, 1 << 20, (1 << 20) - 1, 1 << 21, len(content) - 1):
        for bit in range(8):
            content[place] ^= 1 << bit
            assert library().solm_checksum(content.ctypes.data, len(content), 2) != total
            content[place] ^= 1 << bit
    assert library().solm_checksum(content.ctypes.data, len(content) - 1, 2) != total
    swapped = content.copy()
    swapped[: 1 << 20], swapped[1 << 20 : 1 << 21] = content[1 << 20 : 1 << 21], content[: 1 << 20]
    assert library().solm_checksum(swapped.ctypes.data, len(content), 2) != total
