"""GGUF files of the hub by name, downloaded from a stand-in."""

import json
import os
import subprocess
import sys

import pytest

from helpers.gguf_files import write_gguf
from helpers.hub import hub
from solm.backends.hub import choose, local_model
from solm.core.errors import SolmError

NAME = "me/Tiny-GGUF"


@pytest.fixture
def files(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama")
    data = (tmp_path / "tiny.gguf").read_bytes() + b"\0" * 24_000_000  # the hub's library writes 10 MB at a time
    return {"README.md": b"# Tiny", "tiny-Q4_K_M.gguf": data, "tiny-Q8_0.gguf": data + b"\0" * 32}


def run(tmp_path, *command, address="http://127.0.0.1:9"):
    """A command of its own, because the hub's library reads the hub's address where it is imported."""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "SOLM_CACHE": str(tmp_path / "cache")}
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | own
    program = [sys.executable, "-m", "solm.cli", *command]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow  # ten processes
def test_a_file_is_chosen_downloaded_kept_and_removed(tmp_path, files):
    with hub(NAME, files) as (server, address):
        server.breaks = 1
        done = run(tmp_path, "inspect", f"hf:{NAME}", "--json", address=address)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["family"] == "llama"
        assert f"tiny-Q4_K_M.gguf of the hub repository {NAME}" in done.stderr
        assert server.asked == [None, f"bytes={10 << 20}-"]  # it went on where it was
        assert run(tmp_path, "inspect", f"{NAME}:q8_0", address=address).returncode == 0
        wrong = run(tmp_path, "inspect", f"hf:{NAME}:Q2_K", address=address)
        assert wrong.returncode == 2
        assert wrong.stderr.count("\n") == 1
        assert "means none of its GGUF files" in wrong.stderr
        assert "tiny-Q4_K_M.gguf, tiny-Q8_0.gguf" in wrong.stderr
        missing = run(tmp_path, "inspect", "hf:me/nothing", address=address)
        assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
        assert "no such repository" in missing.stderr
    offline = run(tmp_path, "inspect", f"hf:{NAME}:Q4_K_M", "--json")
    assert offline.returncode == 0, offline.stderr
    name = f"hf:{NAME}:tiny-Q4_K_M.gguf"
    listed = json.loads(run(tmp_path, "cache", "--json").stdout)["entries"]
    assert {"name": name, "kind": "file of the hub", "bytes": len(files["tiny-Q4_K_M.gguf"])} in listed
    assert json.loads(run(tmp_path, "cache", "clear", "--json").stdout)["removed"] == []  # not without its name
    assert json.loads(run(tmp_path, "cache", "clear", name, "--json").stdout)["removed"][0]["name"] == name
    gone = run(tmp_path, "inspect", f"hf:{NAME}:Q4_K_M")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)


def test_what_cannot_be_had_is_one_line(tmp_path, files):
    nothing = run(tmp_path, "inspect", f"hf:{NAME}")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "the hub cannot be reached, and nothing of it was downloaded before" in nothing.stderr
    with hub(NAME, files) as (server, address):
        server.lies = True
        altered = run(tmp_path, "inspect", f"hf:{NAME}:Q8_0", address=address)
        assert (altered.returncode, altered.stderr.count("\n")) == (3, 1), altered.stderr
        assert "another sha256" in altered.stderr
        server.lies = False
        assert run(tmp_path, "inspect", f"hf:{NAME}:Q8_0", address=address).returncode == 0


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (["a-Q2_K.gguf"], None, "a-Q2_K.gguf"), (["a.Q8_0.gguf", "a.Q4_K_M.gguf"], None, "a.Q4_K_M.gguf"),
        (["q8/a-q8_0.gguf", "a-q4_0.gguf"], "Q8_0", "q8/a-q8_0.gguf"), (["a-Q4_0.gguf"], "a-Q4_0.gguf", "a-Q4_0.gguf"),
        (["mmproj-F16.gguf", "a-IQ2_XS.gguf"], None, "a-IQ2_XS.gguf"),
    ],
)  # fmt: skip
def test_a_type_or_a_name_says_which(files, wanted, chosen):
    assert choose("hf:me/a", files, wanted) == chosen


@pytest.mark.parametrize(
    ("files", "wanted", "message"),
    [
        (["model.safetensors"], None, "has no GGUF file"),
        (["a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf"], None, "has no GGUF file in one piece"),
        (["a-IQ1_S.gguf", "a-IQ2_S.gguf"], None, "does not say which .* a-IQ1_S.gguf, a-IQ2_S.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0", "means several .* a-Q4_0.gguf, b-Q4_0.gguf"),
    ],
)
def test_what_it_may_mean_is_listed(files, wanted, message):
    with pytest.raises(SolmError, match=message):
        choose("hf:me/a", files, wanted)


def test_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "a-gguf").mkdir(parents=True)
    for name in ("me/a-gguf", "Qwen/Qwen3-0.6B", "builtin:smollm2-135m", "model.gguf", "folder/model.gguf"):
        assert local_model(name) == name
    with pytest.raises(SolmError, match="is not hf:OWNER/NAME"):
        local_model("hf:model")
