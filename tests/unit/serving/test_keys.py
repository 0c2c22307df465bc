"""API keys: their names, the file that lists them, and the ring that is replaced while a server runs."""

import base64
import json

import pytest

from solm.core.errors import SolmError
from solm.serving.keys import ApiKey, KeyRing, check_keys, read_keys, read_keys_file


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


@pytest.mark.parametrize(("keys", "names"), [("a:one,b:two,c:one", ("a", "c")), ("one,a:one", ("", "a"))])
def test_two_keys_with_one_secret_are_refused_without_it(keys, names):
    with pytest.raises(SolmError) as raised:
        check_keys(read_keys(keys))
    assert str(raised.value) == f"the keys named {names[0]!r} and {names[1]!r} have the same secret"


def test_a_ring_knows_its_keys_until_they_are_replaced():
    alice, other = ApiKey("one", "alice", floor=0.8, priority="high"), ApiKey("bëta")
    ring = KeyRing([alice, other])
    assert [ring.of_secret(secret) for secret in ("one", "bëta", "two", "")] == [alice, other, None, None]
    assert ring.named("alice") == alice
    assert ring.named("") == ring.named("nobody") == ApiKey("")
    ring.replace([])
    assert not ring
    assert ring.of_secret("one") is None
    assert "one" not in repr(alice)


def test_a_key_is_a_bearer_token_or_a_password():
    ring = KeyRing([ApiKey("one", "alice"), ApiKey("b\u00eb:ta")])
    basic, latin = (base64.b64encode("anybody:b\u00eb:ta".encode(code)) for code in ("utf-8", "latin-1"))
    for header, name in (
        (b"Bearer one", "alice"), (b"bearer  one ", "alice"), (b"Basic " + basic, ""), (b"Bearer two", None),
        (b"", None), (b"one", None), (b"Digest one", None), (b"Basic %", None), (b"Basic " + basic[:-4], None),
        (b"Basic \xc3\xa9", None), (b"Basic \xe9", None), (b"Basic " + latin, ""), (b"Bearer \xff", None),
        ("Bearer b\u00eb:ta".encode(), ""), ("Bearer b\u00eb:ta".encode("latin-1"), ""),
    ):  # fmt: skip
        assert ring.of_header(header) == name
    assert KeyRing().of_header(b"anything") == ""


TOML = """
[[keys]]
name = "alice"
secret = "one"
floor = 0.8
priority = "high"
[[keys]]
name = "b"
secret = "two"
"""
ALICE = {"name": "alice", "secret": "one", "floor": 0.8, "priority": "high"}


def test_a_file_lists_keys_with_floors_and_priorities(tmp_path):
    (tmp_path / "keys.toml").write_text(TOML)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [ALICE, {"name": "b", "secret": "two"}]}))
    for name in ("keys.toml", "keys.json"):
        alice, other = read_keys_file(tmp_path / name)
        assert alice == ApiKey("one", "alice", 0.8, "high")
        assert other == ApiKey("two", "b")


HIDDEN = "hunter2"
WRONG = {
    "keys.0.floor": {"keys": [ALICE | {"secret": HIDDEN, "floor": [HIDDEN]}]},
    "keys.0.priority": {"keys": [ALICE | {"secret": HIDDEN, "priority": "urgent"}]},
    "keys.0.name": {"keys": [ALICE | {"name": "", "secret": HIDDEN}]},
    "keys.0.secret": {"keys": [ALICE | {"secret": ""}]},
    "keys.1.secret": {"keys": [ALICE, {"name": "b", "secret": [HIDDEN]}]},
    "keys.0.magic": {"keys": [ALICE | {"magic": HIDDEN}]},
    "keys": {"keys": []},
    "it": [HIDDEN],
}


@pytest.mark.parametrize("place", WRONG)
def test_a_wrong_file_is_refused_by_place_and_without_its_secrets(tmp_path, place):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(WRONG[place]))
    with pytest.raises(SolmError, match=f"keys.json: {place}: ") as raised:
        read_keys_file(path)
    assert HIDDEN not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.json", b"{", "is not JSON"), ("a.json", b"[" * 100_000, "is not JSON"), ("a.toml", b"k = hunter2", "TOML"),
        ("a.toml", b"\xff", "is not TOML"), ("a.json", b" " * (1 << 23), "exceeds"), ("missing", None, "cannot read"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, name, data, word):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SolmError, match=word) as raised:
        read_keys_file(path)
    assert HIDDEN not in str(raised.value)
