"""API keys: their names, and how requests send them."""

import base64

import pytest

from solm.core.errors import SolmError
from solm.serving.keys import ApiKey, find_key, keys_of
from solm.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("secret", ApiKey("secret")), ("alice:secret", ApiKey("secret", "alice")), ("a:b:c", ApiKey("b:c", "a")),
        ("bëta", ApiKey("bëta")), ("sk-1==", ApiKey("sk-1==")), (":x", ApiKey(":x")), ("x:", ApiKey("x:")),
    ],
)  # fmt: skip
def test_a_key_has_a_name_where_one_stands_before_it(text, key):
    assert ApiKey.parse(text) == key


def test_floors_and_priorities_of_keys_come_from_settings():
    chosen = ServeSettings(key_floors={"a": 0.7}, key_priorities={"b": "low"})
    keys = [ApiKey("one"), ApiKey("two", "a", 0.7), ApiKey("three", "b", None, "low"), ApiKey("one")]
    assert keys_of(["one", "a:two", "b:three", "one"], chosen) == keys
    for texts, words in (
        (["a:one", "a:two"], "two keys are named 'a'"), (["a:one", "b:one"], "'a' and 'b' have the same secret"),
        (["a:one"], "--set key_priorities.b: unknown name 'b'; choose one of a"),
    ):  # fmt: skip
        with pytest.raises(SolmError, match=words):
            keys_of(texts, chosen)
    assert not {"key_floors", "key_priorities"} & ServeSettings().model_dump().keys(), "/health names no keys"


def test_a_key_is_a_bearer_token_or_a_password():
    alice, other = ApiKey("one", "alice", floor=0.8, priority="high"), ApiKey("b\u00eb:ta")
    basic, latin = (base64.b64encode("anybody:b\u00eb:ta".encode(code)) for code in ("utf-8", "latin-1"))
    for header, key in (
        (b"Bearer one", alice), (b"bearer  one ", alice), (b"Basic " + basic, other), (b"Bearer two", None),
        (b"", None), (b"one", None), (b"Digest one", None), (b"Basic %", None), (b"Basic " + basic[:-4], None),
        (b"Basic \xc3\xa9", None), (b"Basic \xe9", None), (b"Basic " + latin, other), (b"Bearer \xff", None),
        ("Bearer b\u00eb:ta".encode(), other), ("Bearer b\u00eb:ta".encode("latin-1"), other),
    ):  # fmt: skip
        assert find_key([alice, other], header) == key
    assert find_key([], b"anything") == ApiKey("")
    assert "one" not in repr(alice)
