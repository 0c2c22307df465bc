"""Two replicas behind one address, through Ray Serve."""

import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest

from helpers.commands import free_port
from helpers.serving import until, with_template

pytest.importorskip("ray")


def test_two_replicas_answer_as_one_and_survive_the_loss_of_one(tiny_folder, byte_tokenizer):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "solm.cli", "serve", "--model", str(tiny_folder), "--name", "tiny", "--replicas", "2",
         "--port", str(port)], stderr=subprocess.PIPE, env={**os.environ, "SOLM_API_KEYS": "secret"},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:

        def ready():
            assert process.poll() is None, process.stderr.read()[-2000:]
            try:
                return httpx.get(f"{address}/health").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, 180)
        assert httpx.get(f"{address}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=6)

        def ask():
            return client.completions.create(
                model="tiny", prompt="hello " * 20, max_tokens=20, temperature=0,
                extra_body={"efficiency": {"budget": "keep=0.6"}},
            ).choices[0].text  # fmt: skip

        texts = {ask() for _ in range(8)}
        assert len(texts) == 1
        replicas = subprocess.run(["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True).stdout.split()
        assert len(replicas) == 2
        os.kill(int(replicas[0]), signal.SIGKILL)
        assert {ask() for _ in range(4)} == texts
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
