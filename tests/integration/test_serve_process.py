"""`solm serve` as a process: flags, signals, the real model on both backends, and lm-eval as a client."""

import json
import signal
import sys

import httpx
import openai
import pytest

from helpers.models import tiny_model
from helpers.serving import running, start, tiny_service, with_template
from solm.cli.main import main


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


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--max-rows", "0"], "--max-rows: 0"),
        (["--policy", "nowhere"], "nowhere"),
        (["--slo-floor", "2"], "--slo-floor: budget 2 is out of range"),
        (
            ["--priority-floor", "urgent=0.5"],
            "--priority-floor: unknown name 'urgent'; choose one of low",
        ),
        (["--priority-floor", "low"], "--priority-floor: 'low' is not NAME=BUDGET, such as low=0.5"),
        (["--priority-floor", "low=2"], "--priority-floor low: budget 2 is out of range"),
        (["--priority-floor", "low=0.5", "--priority-floor", "low=0.6"], "--priority-floor: low is given twice"),
        (["--key-floor", "bob=0.5"], "--key-floor: unknown name 'bob'; SOLM_API_KEYS has no key as NAME:SECRET"),
    ],
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
