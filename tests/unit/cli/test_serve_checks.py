"""What `solm serve` is given: every mistake is one line that names the option."""

from pathlib import Path

import pytest

from solm.cli import serve_checks
from solm.core.errors import SolmError
from solm.serving.keys import ApiKey


@pytest.mark.parametrize("origin", ["", "example.org", "https://a.org/", "ftp://a", "https://", "http://[", "null"])
def test_what_is_no_origin_is_refused_beside_what_is_one(origin):
    serve_checks.origins(["*", "https://example.org", "http://localhost:5173", "http://[::1]:80"])
    with pytest.raises(SolmError, match="--allow-origin: "):
        serve_checks.origins(["*", origin])


@pytest.mark.parametrize(("path", "right"), [("", 1), ("/llm", 1), ("/a/b-1", 1), ("llm", 0), ("/", 0), ("/a b", 0)])
def test_root_paths(path, right):
    if right:
        serve_checks.root_path(path)
    else:
        with pytest.raises(SolmError, match="--root-path: "):
            serve_checks.root_path(path)


def test_chat_templates(tmp_path):
    path = tmp_path / "a.jinja"
    assert serve_checks.chat_template(None) is None
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert serve_checks.chat_template(path) == path.read_text()
    path.write_text("{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}")
    assert serve_checks.chat_template(path) == path.read_text(), "special tokens are the model's"
    for text in (b"{% for %}", b"{{ 1 / 0 }}", b"\xff", b"{{ raise_exception('no') }}", b" " * (1 << 21)):
        path.write_bytes(text)
        with pytest.raises(SolmError, match="--chat-template: "):
            serve_checks.chat_template(path)
    with pytest.raises(SolmError, match="--chat-template: cannot read"):
        serve_checks.chat_template(tmp_path)


def test_keys_come_from_two_places(monkeypatch):
    monkeypatch.setenv("SOLM_API_KEYS", "one,a:two")
    keys = serve_checks.api_keys(["b:three"], ["a=0.7", "b=keep=0.6"], ["b=low"])
    assert keys == [ApiKey("one"), ApiKey("two", "a", "0.7"), ApiKey("three", "b", "keep=0.6", "low")]
    for given, floors, priorities, word in (
        ([" "], None, None, "--api-key: it is empty"),
        (["a:five"], None, None, "API keys: two keys are named 'a'"),
        (None, ["d=0.5"], None, "--key-floor: unknown name 'd'; choose one of a"),
        (None, None, ["a=urgent"], "--key-priority a: 'urgent' is none; choose one of low, normal, high"),
    ):
        with pytest.raises(SolmError, match=word):
            serve_checks.api_keys(given, floors, priorities)


def test_a_unix_socket_must_be_one_that_can_be_made(tmp_path):
    serve_checks.unix_socket(tmp_path / "socket")
    assert not (tmp_path / "socket").exists()
    (tmp_path / "file").touch()
    for path, word in (
        (tmp_path / ("s" * 108), "exceeds 107 bytes"),
        (tmp_path / "file", "is there and no socket"),
        (tmp_path / "no" / "socket", "there is no folder"),
        (Path("/proc/socket"), "cannot listen on /proc/socket"),
    ):
        with pytest.raises(SolmError, match=f"--uds: .*{word}"):
            serve_checks.unix_socket(path)
