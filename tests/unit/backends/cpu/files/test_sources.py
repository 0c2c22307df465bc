"""Bad files: every damage is one line that names the file and the field, whatever the damage is."""

import json
import random
import struct
import time

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as TensorType
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from helpers.engine import SPARSITY
from helpers.engine_edges import Rows
from helpers.gguf_files import write_gguf
from helpers.models import tiny_model, tokens
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.sources import GgufFile, SafetensorsFolder
from solm.core.errors import DamagedFileError, SolmError, UnsupportedModelError

TINY = {
    "hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 1, "vocab_size": 16,
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.gguf"
    write_gguf(path, "llama", lambda name: TensorType.Q8_0, **TINY)
    return path


def changed(path, before: bytes, after: bytes):
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))


def field(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def listed(name: str, *shape: int, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(shape)}QI", len(shape), *shape, kind)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b"blk.0.ffn_up", b"blk.0.ffn_xx", "blk.0.ffn_up.weight: it is missing"),
        (
            field("llama.block_count", 4, struct.pack("<I", 1)), field("llama.block_count", 4, struct.pack("<I", 4000)),
            "blk.1.attn_q.weight: it is missing",
        ),
        (
            field("llama.embedding_length", 4, struct.pack("<I", 32)),
            field("llama.embedding_length", 4, struct.pack("<I", 64)),
            r"token_embd.weight: its shape is \[16, 32\], not \[16, 64\]",
        ),
        (
            field("llama.attention.head_count", 4, struct.pack("<I", 2)),
            field("llama.attention.head_count", 6, struct.pack("<f", 2.5)),
            "attention.head_count: must be a whole number from 1 to 4096, not 2.5",
        ),
        (
            listed("blk.0.ffn_up.weight", 32, 32, kind=8), listed("blk.0.ffn_up.weight", 32, 32, kind=24),
            "blk.0.ffn_up.weight: type I8 is not among F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, ",
        ),
        (
            field("general.name", 8, struct.pack("<Q", 4) + b"tiny"),
            field("general.name", 9, struct.pack("<IQIQ", 9, 1, 9, 1)), "general.name: an array of arrays",
        ),
    ],
)  # fmt: skip
def test_damage_to_a_gguf_file_is_one_line(small, before, after, words):
    changed(small, before, after)
    with pytest.raises(DamagedFileError, match=words) as found:
        GgufFile(small)
    message = str(found.value)
    assert message.startswith(f"{small} is damaged: ")
    assert "\n" not in message
    assert found.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("expert_count", 8, 9, r"ffn_gate_exps.weight: its shape is \[8, 32, 32\], not \[9, 32, 32\]"),
        ("expert_used_count", 3, 9, "expert_used_count: must be a whole number from 1 to 8, not 9"),
        ("expert_feed_forward_length", 32, 64, r"ffn_gate_exps.weight: its shape is \[8, 32, 32\], not \[8, 64, 32\]"),
    ],
)
def test_damage_to_a_mixture_of_experts_is_one_line(name, before, after, words, tmp_path):
    path = tmp_path / "mixture.gguf"
    write_gguf(path, "qwen3_moe", lambda name: TensorType.Q8_0, **TINY, moe_intermediate_size=32)
    changed(path, *(field(f"qwen3moe.{name}", 4, struct.pack("<I", value)) for value in (before, after)))
    with pytest.raises(DamagedFileError, match=words) as found:
        GgufFile(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (listed("blk.0.attn_sinks.weight", 2, kind=0), listed("blk.0.attn_sinks.weight", 1, kind=0),
         r"attn_sinks.weight: its shape is \[1\], not \[2\]"),
        (listed("blk.0.ffn_up_exps.bias", 32, 8, kind=0), listed("blk.0.ffn_up_exps.bias", 32, 7, kind=0),
         r"ffn_up_exps.bias: its shape is \[7, 32\], not \[8, 32\]"),
        (b"blk.0.ffn_gate_inp.bias", b"blk.0.ffn_gate_xxx.bias", "blk.0.ffn_gate_inp.bias: it is missing"),
        (field("gpt-oss.rope.scaling.factor", 6, struct.pack("<f", 32)),
         field("gpt-oss.rope.scaling.factor", 6, struct.pack("<f", -1)), "factor: must be a number above 0, not -1.0"),
    ],
)  # fmt: skip
def test_damage_to_gpt_oss_is_one_line(before, after, words, tmp_path):
    path = tmp_path / "gpt-oss.gguf"
    write_gguf(
        path, "gpt_oss", lambda name: TensorType.MXFP4 if name in ("gate", "up", "down") else TensorType.F32, **TINY
    )
    changed(path, before, after)
    with pytest.raises(DamagedFileError, match=words) as found:
        GgufFile(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("mlp.experts.gate_up_proj", (8, 128, 32), r"gate_up_proj: its shape is \[8, 128, 32\], not \[8, 32, 128\]"),
        ("mlp.experts.down_proj_bias", (8, 33), r"down_proj_bias: its shape is \[8, 33\], not \[8, 32\]"),
        ("self_attn.sinks", (8,), r"sinks: its shape is \[8\], not \[2\]"),
    ],
)
def test_folders_of_gpt_oss_have_the_shapes_that_transformers_writes(name, shape, words, tmp_path):
    tiny_model("gpt_oss", torch.float32, **TINY | {"intermediate_size": 64}).save_pretrained(tmp_path)
    assert SafetensorsFolder(tmp_path).tensor("down", 0, 7).shape == (32, 64)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {f"model.layers.0.{name}": np.zeros(shape, np.float32)}, path)
    with pytest.raises(DamagedFileError, match=words):
        SafetensorsFolder(tmp_path)


def write_packed(folder):
    """A tiny model of gpt-oss in `folder` as OpenAI's files have it, with experts in MXFP4; and that model, with the
    weights that transformers makes of these."""
    model = tiny_model("gpt_oss", torch.float32, intermediate_size=64)
    draw, packed = torch.Generator().manual_seed(3), {}
    for name, parameter in model.named_parameters():
        if name.endswith("_proj") and ".experts." in name:
            experts, inputs, outputs = parameter.shape
            shape = (experts, outputs, inputs // 32)
            blocks = torch.randint(0, 256, (*shape, 16), generator=draw, dtype=torch.uint8)
            scales = torch.randint(120, 125, shape, generator=draw, dtype=torch.uint8)
            parameter.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            packed |= {f"{name}_blocks": blocks.numpy(), f"{name}_scales": scales.numpy()}
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    left = {name: values for name, values in load_file(path).items() if f"{name}_blocks" not in packed}
    save_file(left | packed, path)
    return model


def test_gpt_oss_as_openai_writes_it_is_what_transformers_reads(tmp_path):
    """Prompt and steps, in float32 and in the file's own bits, whose numbers are the same."""
    model, ids = write_packed(tmp_path), tokens(1, 40)
    with torch.no_grad():
        expected = model(ids).logits
    for precision, most in (("float32", 1e-4), ("auto", 0.1)):
        rows = Rows(Engine(SafetensorsFolder(tmp_path), SPARSITY, precision), 1)
        found = torch.cat([rows.run(part).logits for part in ids.split([36, 1, 1, 2], 1)], 1)
        assert (found - expected).abs().median() < most * expected.std()
        assert precision == "auto" or (found - expected).abs().max() < most * expected.std()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("layers.0.mlp.experts.down_proj_scales", lambda of: None, "down_proj_blocks: type U8 is not among F32"),
        ("layers.0.mlp.experts.down_proj_scales", lambda of: of[:, :1].copy(), r"blocks \[8, 64, 2, 16\] do not fit"),
        ("layers.0.mlp.experts.down_proj_blocks", lambda of: of[:7], "do not fit"),
        ("norm.weight", lambda of: np.zeros(64, np.uint8), "norm.weight: type U8 is not among F32"),
    ],
)
def test_damage_to_packed_experts_is_one_line(name, change, words, tmp_path):
    write_packed(tmp_path)
    path = tmp_path / "model.safetensors"
    content = load_file(path)
    new = change(content.pop(f"model.{name}"))
    save_file(content | ({} if new is None else {f"model.{name}": new}), path)
    with pytest.raises(DamagedFileError, match=words) as found:
        SafetensorsFolder(tmp_path)
    assert "\n" not in str(found.value)


def test_folders_of_mixtures_lack_no_expert(tmp_path):
    """Nor do layers without experts pass, or more experts for a token than there are."""
    tiny_model("qwen3_moe", torch.float32, **TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, error, words in (
        ({"num_local_experts": 9}, DamagedFileError, "experts.8.gate_proj.weight: it is missing"),
        (
            {"num_experts_per_tok": 9},
            DamagedFileError,
            "num_experts_per_tok: must be a whole number from 1 to 8, not 9",
        ),
        ({"mlp_only_layers": [0]}, UnsupportedModelError, r"mlp_only_layers \[0\] is not supported"),
        ({"decoder_sparse_step": 2}, UnsupportedModelError, "decoder_sparse_step 2: layers without experts"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(error, match=words):
            SafetensorsFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert SafetensorsFolder(tmp_path).tensor("down", 0, 7).shape == (32, 64)
    changed(tmp_path / "model.safetensors", b"mlp.experts.7.up_proj", b"mlp.experts.7.up_xxxx")
    with pytest.raises(DamagedFileError, match=r"mlp\.experts\.7\.up_proj\.weight: it is missing"):
        SafetensorsFolder(tmp_path)


def test_tensors_that_a_family_does_not_have_are_refused(tmp_path):
    """Never silently left out: experts, biases and adapters change what a model computes."""
    path = tmp_path / "more.gguf"
    for name in ("blk.0.ffn_gate_inp.weight", "blk.1.attn_output.bias"):
        write_gguf(path, "llama", tensors={name: np.zeros(4, np.float32)})
        with pytest.raises(UnsupportedModelError, match=f"more.gguf: tensor '{name}' is not known in family llama"):
            GgufFile(path)
    write_gguf(path, "llama", tensors={"rope_freqs.weight": np.ones(8, np.float32)})
    assert GgufFile(path).spec.layers == 2
    write_gguf(path, "olmo2")
    changed(path, b"\5\0\0\0\0\0\0\0olmo2", b"\6\0\0\0\0\0\0\0olmo2x")
    with pytest.raises(UnsupportedModelError, match="GGUF architecture 'olmo2x' is not among llama, qwen2, qwen3"):
        GgufFile(path)


def mutated(content: bytes, header: int, draw: random.Random) -> bytes:
    """The content with some damage to its first `header` bytes."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place = draw.randrange(header)
        match draw.randrange(6):
            case 0:
                made[place] ^= 1 << draw.randrange(8)
            case 1:
                made[place] = draw.randrange(256)
            case 2:
                value = draw.choice((0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, draw.randrange(1 << 64)))
                made[place : place + 8] = struct.pack("<Q", value)
            case 3:
                made[place : place + 4] = struct.pack("<I", draw.choice((0, 8, 9, 12, 2**31, 2**32 - 1)))
            case 4:
                del made[place : place + draw.randrange(1, 40)]
            case 5:
                made[place:place] = made[(other := draw.randrange(header)) : other + draw.randrange(1, 40)]
    return bytes(made[: draw.randrange(len(made))] if draw.random() < 0.1 else made)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_ten_thousand_mutated_headers_are_read_or_refused(family, small):
    """No other error, no crash, no long message, and nothing takes long."""
    write_gguf(small, family, lambda name: TensorType.Q8_0, **TINY, moe_intermediate_size=32)
    content = small.read_bytes()
    header = min(tensor.begin for tensor in GgufFile(small)._places.values())
    assert header < 5000
    draw, slowest = random.Random(1), 0.0
    messages = []
    for _ in range(10_000):
        small.unlink()  # some file systems flush what is written over
        small.write_bytes(mutated(content, header, draw))
        begun = time.process_time()
        try:
            GgufFile(small)
        except SolmError as error:
            messages.append(str(error))
        slowest = max(slowest, time.process_time() - begun)
    assert len(messages) > 5_000
    assert max(map(len, messages)) < 400
    assert not any("\n" in message for message in messages)
    assert slowest < 1


@pytest.fixture
def folder(tmp_path):
    tiny_model("qwen3").float().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def rewritten(path, change) -> None:
    """A safetensors file with another header."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.pop(UP), "invalid offset"),
        (lambda h: h[UP].update(shape=[64, 96]), rf"{UP}: its shape is \[64, 96\], not \[96, 64\]"),
        (lambda h: h[UP].update(shape=[64, 97]), "invalid shape, data type, or offset"),
        (lambda h: h[UP].update(shape=[1 << 63, 1 << 63]), "overflow"),
        (lambda h: h[UP].update(dtype="I32"), f"{UP}: type I32 is not among F32, F16, BF16"),
    ],
)
def test_damage_to_safetensors_is_one_line(folder, change, words):
    rewritten(folder / "model.safetensors", change)
    with pytest.raises(DamagedFileError, match=words) as found:
        SafetensorsFolder(folder)
    assert str(folder) in str(found.value)
    assert "\n" not in str(found.value)


def test_folders_that_hold_no_model_are_named(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(SolmError, match=r"tiny has neither model.safetensors nor model.safetensors.index.json"):
        SafetensorsFolder(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(DamagedFileError, match="weight_map: it does not name files"):
        SafetensorsFolder(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "none.safetensors"}}')
    with pytest.raises(SolmError, match=r"cannot read .*none.safetensors: No such file"):
        SafetensorsFolder(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "no\\u0000ne"}}')
    with pytest.raises(SolmError, match=r"cannot read .*: embedded null byte"):
        SafetensorsFolder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"config.json is damaged: it is not JSON"):
        SafetensorsFolder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SolmError, match=r"cannot read .*config.json: No such file"):
        SafetensorsFolder(folder)


def test_a_file_without_tensors_is_refused(small):
    content = small.read_bytes()
    small.write_bytes(content[:8] + bytes(8) + content[16:])
    with pytest.raises(SolmError, match=r"small\.gguf"):
        GgufFile(small)
