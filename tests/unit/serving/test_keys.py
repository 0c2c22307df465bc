"""API keys: their names, and how requests send them."""

import base64

import pytest

from solm.core.errors import SolmError
from solm.serving.keys import ApiKey, check_keys, find_key, read_keys


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("secret", ApiKey("secret")), ("alice:secret", ApiKey("secret", "alice")), ("a:b:c", ApiKey("b:c", "a")),
        ("bëta", ApiKey("bëta")), ("sk-1==", ApiKey("sk-1==")), (":x", ApiKey(":x")), ("x:", ApiKey("x:")),
    ],
)  # fmt: skip
def test_a_key_has_a_name_where_one_stands_before_it(text, key):
    assert ApiKey.parse(text) == key


def test_a_list_of_keys():
    keys = read_keys(" one, a:two ,,b:three,one")
    assert [key.name for key in keys] == ["", "a", "b", ""]
    assert read_keys("") == []
    check_keys(keys)
    with pytest.raises(SolmError, match="two keys are named 'a'"):
        check_keys(read_keys("a:one,a:two"))


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
