"""Streams of text."""

import copy

from solm.runtime.reply import TextStream


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


def test_a_token_costs_the_same_however_long_nothing_can_be_shown(byte_tokenizer):
    """Bytes that never make a character: what is decoded anew stays short."""
    decoded = []

    class Counting:
        def decode(self, ids, **options):
            decoded.append(len(ids))
            return byte_tokenizer.decode(ids, **options)

    byte = byte_tokenizer("é", add_special_tokens=False)["input_ids"][1]
    stream = TextStream(Counting())
    for _ in range(300):
        stream.push(byte)
    stream.flush()
    assert max(decoded) <= 40


def test_special_tokens_may_be_part_of_the_text(byte_tokenizer):
    """As the mark that begins a call in some models' replies."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[CALLS]", "[OTHER]"]})
    mark, other = tokenizer.convert_tokens_to_ids(["[CALLS]", "[OTHER]"])
    ids = [*tokenizer.encode("a\u00e9"), mark, other, *tokenizer.encode("\u00e9b"), mark]
    for shown, text in (
        ((), "a\u00e9\u00e9b"), ({mark}, "a\u00e9[CALLS]\u00e9b[CALLS]"),
        ({mark, other}, "a\u00e9[CALLS][OTHER]\u00e9b[CALLS]"),
    ):  # fmt: skip
        stream = TextStream(tokenizer, True, shown)
        assert "".join(stream.push(token) for token in ids) + stream.flush() == text
