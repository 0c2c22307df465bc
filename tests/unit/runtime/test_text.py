"""Streams of text."""

from solm.runtime.text import TextStream


def test_text_never_shows_half_a_character(byte_tokenizer):
    text = "naïve 😀 café — ok"
    ids = byte_tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(byte_tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    cut = TextStream(byte_tokenizer)
    shown = "".join(cut.push(token) for token in byte_tokenizer("ok 😀", add_special_tokens=False)["input_ids"][:-1])
    assert shown == "ok "
    assert cut.flush().startswith("\ufffd")
