"""Decoding on the cpu backend imports neither torch nor transformers, and gives what the Python API gives."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from urllib.request import Request, urlopen

import pytest
import torch

import solm
from helpers.commands import free_port
from helpers.models import tiny_model
from helpers.policies import under_values

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")

RUNNER = """
import sys
from solm.cli.main import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    print("imported:", *heavy, file=sys.stderr)
"""
SLOWER = """
take = batch.Row.take
def slowly(*given):
    time.sleep(0.05)
    return take(*given)
batch.Row.take = slowly
"""
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
PROMPT = "the fox jumps over the dog " * 4
SETTINGS = {
    "under a budget": ["--budget", "keep=0.9"],
    "under a budget in time": ["--budget", "ms=1000"],
    "drawn from the likeliest": ["--temperature", "1.3", "--top-p", "0.8", "--top-k", "40", "--seed", "5"],
    "by a policy": ["--policy", "{policy}", "--budget", "keep=0.7"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, byte_tokenizer):
    """A tiny model as a folder, whose tokenizer transformers has read once, and a policy for it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model("llama", torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # replies are as long as asked
    model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    policy = folder.parent / "policy"
    with solm.load(folder, backend="cpu") as lm:
        under_values(lm, solm.SparsityConfig(window=32)).trained.save_pretrained(policy)
    return {"model": str(folder), "policy": str(policy)}


def run(arguments, said=None):
    """The standard output of a command in a process of its own, and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *arguments], input=said, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.rsplit("imported:", 1)[1].split()


@pytest.mark.parametrize("setting", SETTINGS)
def test_generate_imports_neither_torch_nor_transformers(places, setting):
    given = [part.format(**places) for part in SETTINGS[setting]]
    common = ["--backend", "cpu", "--max-new-tokens", "40", "--json", PROMPT]
    shown, heavy = run(["generate", "--model", places["model"], *given, *common])
    assert heavy == []
    names = {"--budget": "budget", "--temperature": "temperature", "--seed": "seed", "--top-p": "top_p"}
    names["--top-k"] = "top_k"
    asked = {names[name]: value for name, value in zip(given[::2], given[1::2], strict=True) if name in names}
    options = {name: value if name == "budget" else json.loads(value) for name, value in asked.items()}
    policy = places["policy"] if "--policy" in given else None
    with solm.load(places["model"], policy, backend="cpu") as lm:
        ids = lm.encode(PROMPT)
        assert isinstance(ids, torch.Tensor)
        reply = lm.generate(ids, max_new_tokens=40, **options)
        assert "LlamaForCausalLM" not in str(type(lm.tokenizer))
        whole = lm.tokenizer(PROMPT, return_tensors="pt").input_ids  # what only transformers can do
        assert whole[0].tolist() == lm.tokenizer.encode(PROMPT)
    assert [token["id"] for token in json.loads(shown)["tokens"]] == [token.id for token in reply.tokens]


def test_chat_imports_neither(places):
    talk = ["chat", "--model", places["model"], "--backend", "cpu", "--max-new-tokens", "8"]
    shown, heavy = run(talk, "hello\n/budget 0.9\nand now?\n")
    assert heavy == []
    assert shown.strip()


def test_serve_imports_neither(places):
    """A request with a budget, sampling and log-probabilities, after the warm-up under every policy."""
    pytest.importorskip("fastapi")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, "serve", "--model", places["model"], "--backend", "cpu", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not ready(f"{address}/health"):
            assert time.monotonic() < end
            time.sleep(0.2)
        body = {
            "model": places["model"], "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8,
            "temperature": 0.7, "logprobs": True, "top_logprobs": 3,
            "efficiency": {"budget": "ms=1000", "policy": "static"},
            "structured_outputs": {"regex": "[a-z]{20}"},
        }  # fmt: skip
        asked = Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        choice = json.load(urlopen(asked))["choices"][0]
        assert json.load(urlopen(f"{address}/v1/models"))["data"][0]["id"] == "tiny"
        assert len(choice["logprobs"]["content"]) == 8
    finally:
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].rsplit("imported:", 1)[1].split() == []


def ready(address: str) -> bool:
    try:
        return json.load(urlopen(address))["status"] == "ready"
    except OSError:
        return False


def test_what_needs_transformers_imports_it(places):
    given = ["generate", "--model", places["model"], "--max-new-tokens", "4", "--set", "repetition_penalty=1.3", PROMPT]
    assert run([*given, "--backend", "torch"])[1] == ["torch", "transformers"]
    assert run([*given, "--backend", "cpu"])[1] == []


def test_an_interrupted_reply_is_kept_and_ends_with_one_line(places, tmp_path):
    out = tmp_path / "reply.json"
    given = ["--model", places["model"], "--backend", "cpu", "--max-new-tokens", "300", "--out", str(out), PROMPT]
    slow = RUNNER.replace("import sys\n", "import sys, time\nimport solm.runtime.batch as batch\n" + SLOWER, 1)
    # A shell's background jobs ignore interrupts, and so would what they start.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "generate", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=heeding,
    )  # fmt: skip
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    lines = told.decode().splitlines()
    assert lines[-2:] == ["solm: interrupted", "imported:"]
    assert not any("Traceback" in line for line in lines)
    kept = json.loads(out.read_text())
    assert (first + shown).decode(errors="replace").rstrip("\n").startswith(kept["text"][:3])
    assert 0 < len(kept["tokens"]) < 300
