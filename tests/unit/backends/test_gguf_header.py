"""GGUF headers: what they say, without weights; every damage is one line that names file and field."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from solm.backends.gguf_header import ArrayInfo, read_header
from solm.backends.torch.load import skeleton
from solm.core.errors import DamagedFileError


@pytest.fixture
def small(tmp_path) -> Path:
    """A llama of two layers, with a vocabulary and one tensor of each of two types."""
    path = tmp_path / "small.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"token{index}" for index in range(5000)])
    writer.add_array("llama.some_numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((5000, 64), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_says_family_sizes_and_tensor_types(small):
    header = read_header(small)
    assert header.family == "llama"
    assert header.size("block_count") == 2
    assert header.size("nothing") is None
    assert header.vocabulary == 5000
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayInfo("STRING", 5000)
    assert header.metadata["llama.some_numbers"] == [1, 2, 3]
    assert header.types() == {"F16": (1, 640_000), "F32": (1, 256)}
    last = header.tensors[-1]
    assert last.shape == (64,)
    assert last.offset + last.bytes <= small.stat().st_size


def changed(content: bytes, before: bytes, after: bytes) -> bytes:
    assert before in content
    return content.replace(before, after, 1)


UINT32, TYPE_77 = (struct.pack("<I", number) for number in (4, 77))
BLOCKS = b"llama.block_count"
EMBEDDING = b"token_embd.weight" + struct.pack("<I2Q", 2, 64, 5000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", "header: the file is empty"),
        (lambda content: b"GGML" + content[4:], "is not a GGUF file"),
        (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "version: 9 is not among 2, 3"),
        (lambda content: content[:200], "the file ends within it, at byte 200"),
        (
            lambda content: content[:16] + struct.pack("<Q", 1 << 63) + content[24:],
            "field count: 9223372036854775808 is more than 65536",
        ),
        (lambda content: changed(content, BLOCKS + UINT32, BLOCKS + TYPE_77), "block_count: unknown type 77"),
        (lambda content: changed(content, BLOCKS, b"llama.block_c\xff\xfe\xfdt"), "name of field .*: it is not UTF-8"),
        (
            lambda content: changed(content, EMBEDDING, b"token_embd.weight" + struct.pack("<I2Q", 2, 64, 1 << 40)),
            "token_embd.weight: bytes .* lie past the end",
        ),
    ],
)  # fmt: skip
def test_damage_is_one_line_that_names_file_and_field(small, damage, words):
    small.write_bytes(damage(small.read_bytes()))
    for read in (read_header, lambda path: skeleton(str(path))):
        with pytest.raises(DamagedFileError, match=words) as found:
            read(small)
        assert str(small) in str(found.value)
        assert "\n" not in str(found.value)


def test_tensors_that_overlap_are_refused(small):
    """A file that says so is manipulated: it would compute something else, or hold far less than it declares."""
    second = b"output_norm.weight" + struct.pack("<IQI", 1, 64, 0)
    content = small.read_bytes()
    place = content.index(second) + len(second)
    small.write_bytes(content[:place] + struct.pack("<Q", 0) + content[place + 8 :])
    with pytest.raises(DamagedFileError, match=r"(token_embd|output_norm)\.weight: it overlaps"):
        read_header(small)
