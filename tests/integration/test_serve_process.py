"""`solm serve` as a process: flags, signals, the real model on both backends, and lm-eval as a client."""

import json
import signal

import httpx
import openai
import pytest

from helpers.models import tiny_model
from helpers.serving import running, start, tiny_service, until, with_template
from solm.backends.tokenizer import model_tokenizer
from solm.serving.settings import MAX_CHOICES


def test_a_process_drains_on_sigterm(tiny_folder, byte_tokenizer):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    process, address = start("--model", tiny_folder, "--name", "tiny", keys="secret, other")
    assert httpx.get(f"{address}/v1/models").status_code == 401
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x" * 100}], max_tokens=300, stream=True,
        logit_bias={"2": -100}, extra_body={"efficiency": {"budget": "keep=0.6"}},
    )  # fmt: skip
    pieces = [next(iter(stream))]
    process.send_signal(signal.SIGTERM)
    pieces.extend(stream)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert process.wait(30) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    assert any(line.get("completion_tokens") == 300 for line in lines)


@pytest.fixture
def endless(tiny_folder, byte_tokenizer):
    """Starts a server with options, and a stream from it that goes on for longer than a test; gives both."""
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    running = []

    def begin(*options):
        process, address = start(
            "--model", tiny_folder, "--name", "tiny", "--backend", "torch", "--max-rows", 1, *options
        )
        running.append(process)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
        until(lambda: httpx.get(f"{address}/health/ready").status_code == 200)
        stream = client.completions.create(
            model="tiny", prompt="x" * 20, max_tokens=450, n=MAX_CHOICES, stream=True, logit_bias={"2": -100}
        )
        next(iter(stream))
        return process, stream

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_a_second_interrupt_ends_a_process_at_once(endless):
    process, stream = endless()
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "force quit" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(15) in (130, 0)  # 0 where these tests run in the background, which ignores SIGINT
    assert "Traceback" not in process.stderr.read()
    stream.close()


def test_a_process_with_the_options_that_vllms_users_need(tiny_folder, byte_tokenizer):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    model_tokenizer(str(tiny_folder))  # kept in the cache: the process need not import transformers for it
    process, address = start(
        "--model", tiny_folder, "--served-model-name", "first", "--served-model-name", "second", "--max-num-seqs", 4,
        "--max-model-len", 400, "--api-key", "carol:three-secret", "--set", "key_priorities.alice=low",
        "--set", "ignore_unknown=true", "--slo-tpot-ms", 1000, keys="alice:one-secret",
    )  # fmt: skip

    def told(secret):
        return httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {secret}"})

    limits = httpx.get(f"{address}/health").json()["limits"]
    assert (limits["max_rows"], limits["max_model_len"], limits["ignore_unknown"]) == (4, 400, True)
    assert [told(secret).status_code for secret in ("one-secret", "three-secret", "two-secret")] == [200, 200, 401]
    assert told("one-secret").json()["data"][0]["id"] == "first"

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="one-secret", max_retries=0)
    chat = {"messages": [{"role": "user", "content": "x" * 50}], "logit_bias": {"2": -100}, "max_tokens": 300}
    stream = client.chat.completions.create(model="second", stream=True, extra_body={"magic": 1}, **chat)
    assert stream.response.headers["x-solm-ignored"] == "magic"
    pieces = [next(iter(stream))]
    assert pieces[0].model == "first"
    with pytest.raises(openai.BadRequestError, match="high is above low"):
        client.chat.completions.create(model="first", extra_body={"efficiency": {"priority": "high"}}, **chat)
    pieces.extend(stream)
    assert pieces[-1].choices[0].finish_reason == "length"
    # The client's connection stays open, idle.
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=25)[1]
    assert "-secret" not in log


def test_lm_eval_reads_the_same_from_the_api(byte_tokenizer, tiny_folder):
    """lm-eval's own client for such servers, against a forward pass of the model."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

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
