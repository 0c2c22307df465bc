"""Two replicas behind one address, each a process with a model of its own."""

import json
import os
import re
import signal
import ssl
import subprocess

import httpx
import openai

from helpers.serving import start, until, with_template

CHAT = [{"role": "system", "content": "Be brief. " * 30}, {"role": "user", "content": "Hello"}]


def processes(parent):
    """The ids of a process's children."""
    return [int(found) for found in subprocess.check_output(["pgrep", "-P", str(parent)]).split()]


def metric(address, name, labels=""):
    """A metric with some labels by replica."""
    text = httpx.get(f"{address}/metrics", headers={"Authorization": "Bearer secret"}).text
    found = re.findall(rf'^{name}{{replica="(\d)".*{labels}.*}} (.*)$', text, re.MULTILINE)
    return {int(number): float(value) for number, value in found}


def test_two_replicas_share_an_address_and_survive_the_loss_of_one(tiny_folder, byte_tokenizer):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    process, address = start(
        "--model", tiny_folder, "--name", "tiny", "--replicas", 2, "--drain-seconds", 5, keys="secret"
    )
    try:
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Host": "elsewhere"}).status_code == 400
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=6)

        def ask(*turns, **more):
            messages = [*CHAT, *({"role": role, "content": text} for role, text in turns)]
            extra = {"efficiency": {"budget": "keep=0.6"}}
            return client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=20, temperature=0, extra_body=extra, **more
            )

        texts = {ask().choices[0].message.content for _ in range(4)}
        later = ask(("assistant", "Hi"), ("user", "Why?"))
        assert len(texts) == 1
        assert later.usage.prompt_tokens_details.cached_tokens > 250
        cached = metric(address, "solm_tokens_total", 'kind="cached"')
        busy = max(cached, key=lambda number: cached[number])
        assert sum(cached.values()) < 1.25 * cached[busy]  # all went to one replica; the other has only warmed up

        stream = ask(stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: sum(metric(address, "solm_rows_running").values()) == 0, 10)

        children = processes(process.pid)
        assert len(children) == 2
        os.kill(children[busy], signal.SIGKILL)
        assert {ask().choices[0].message.content for _ in range(4)} == texts
        until(lambda: len(metric(address, "solm_rows_running")) == 2, 120)
        assert len(processes(process.pid)) == 2
    finally:
        children = processes(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def test_two_replicas_behind_tls_read_their_keys_again(tiny_folder, byte_tokenizer, tmp_path, pem):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    file, trust = tmp_path / "keys.json", ssl.create_default_context(cafile=pem / "cert.pem")

    def allow(secret):
        file.write_text(json.dumps({"keys": [{"name": "alice", "secret": secret}]}))

    allow("one-secret")
    process, address = start(
        "--model", tiny_folder, "--name", "tiny", "--replicas", 2, "--keys-file", file,
        "--ssl-certfile", pem / "cert.pem", f"--ssl-keyfile={pem / 'key.pem'}", trust=trust,
    )  # fmt: skip
    try:
        with httpx.Client(verify=trust, base_url=address) as http:

            def told(secret, path="/metrics", **options):
                """The status of an answer; for metrics that of all replicas."""
                headers = {"Authorization": f"Bearer {secret}"}
                return http.request(options.pop("method", "GET"), path, headers=headers, **options).status_code

            assert [told(secret) for secret in ("one-secret", "two-secret")] == [200, 401]
            moved = http.get("/tokenize/", headers={"Authorization": "Bearer one-secret"})
            assert (moved.status_code, moved.headers["location"]) == (307, f"{address}/tokenize")
            large = {"method": "POST", "path": "/v1/completions", "content": b" " * ((1 << 20) + 1)}
            assert [told(secret, **large) for secret in ("one-secret", "two-secret")] == [413, 401]

            allow("two-secret")
            process.send_signal(signal.SIGHUP)
            until(lambda: told("two-secret") == 200)
            assert told("one-secret") == 401

            os.kill(processes(process.pid)[1], signal.SIGKILL)
            allow("three-secret")
            process.send_signal(signal.SIGHUP)
            until(lambda: told("three-secret") == 200)
            headers = {"Authorization": "Bearer three-secret"}
            until(lambda: 'replica="1"' in http.get("/metrics", headers=headers).text, 120)  # after its start
            assert [told(secret) for secret in ("three-secret", "two-secret")] == [200, 401]
    finally:
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
    assert "-secret" not in log


def test_replicas_end_with_the_process_in_front(tiny_folder, byte_tokenizer):
    with_template(byte_tokenizer).save_pretrained(tiny_folder)
    process, _ = start("--model", tiny_folder, "--replicas", 2)
    children = processes(process.pid)
    assert len(children) == 2
    process.kill()
    process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{child}") for child in children), 60)
