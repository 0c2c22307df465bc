"""Routers that others wrote, in front of two servers of the embedded model, started as docs/scale.md says.

`make test-all` installs them; `SOLM_ROUTERS` may name folders of programs of other environments, separated by colons.
Requests' budgets have to arrive, a conversation has to stay with one server, and a server that is killed may take along
no request but those that it had begun.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from helpers.commands import free_port
from helpers.serving import start, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = "builtin:smollm2-135m"
SESSIONS = "abcdefgh"


def program(name):
    path = ":".join([os.environ.get("SOLM_ROUTERS", ""), str(Path(sys.executable).parent)])
    return shutil.which(name, path=path) or pytest.skip(f"{name} is not installed: pip install -e '.[scale]'")


def ask(address, session, tokens=8):
    """A chat of a conversation named `session`."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": f"{session}: why is the sky blue? " * 4}],
        "max_tokens": tokens, "efficiency": {"budget": "keep=0.7"},
    }  # fmt: skip
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers={"x-session-id": session}, timeout=120)


def answers(address, path="/health/ready"):
    try:
        return httpx.get(f"{address}{path}", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def answered(server):
    """How many tokens a server has written."""
    text = httpx.get(f"{server[1]}/metrics").text
    return float(re.search(r'^solm_tokens_total{kind="completion"} (\S+)', text, re.M)[1])


@pytest.fixture
def launch(tmp_path):
    """Starts a router and returns its log, which is shown where a test fails; ends it with all that it started."""
    started, path = [], tmp_path / "router.log"

    def begin(*command, cwd=ROOT, **environment):
        with path.open("w") as log:
            started.append(
                subprocess.Popen(
                    [*map(str, command)], cwd=cwd, stdout=log, stderr=log, env={**os.environ, **environment},
                    start_new_session=True,
                )
            )  # fmt: skip
        return path

    yield begin
    for process in started:
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, left = psutil.wait_procs([psutil.Process(process.pid), *children], 30)
        for each in left:
            each.kill()
        process.wait()
    print(path.read_text()[-3000:])


def checks(address, kill):
    """What every router has to do for two servers, of which `kill` ends one."""
    for turn in range(2):
        for session in SESSIONS:
            usage = ask(address, session).raise_for_status().json()["usage"]
            assert (usage["compute"]["budget"], round(usage["compute"]["requested"]["net"], 2)) == ("keep=0.7", 0.7)
            if turn:  # the server that this prompt was read by has it in its cache, all but its last tokens
                assert usage["prompt_tokens_details"]["cached_tokens"] > 0.6 * usage["prompt_tokens"]
    end = time.monotonic() + 20

    def client(session):
        seen = Counter()
        while time.monotonic() < end:
            seen[ask(address, session, tokens=32).status_code] += 1
        return seen

    with ThreadPoolExecutor(len(SESSIONS)) as pool:
        clients = [pool.submit(client, session) for session in SESSIONS]
        time.sleep(5)
        kill()
        seen = {session: each.result() for session, each in zip(SESSIONS, clients, strict=True)}
    lost = {session: sum(each.values()) - each[200] for session, each in seen.items()}
    assert max(lost.values()) <= 1, lost  # what was in flight
    assert all(each[200] for each in seen.values()), seen


def test_vllm_router(launch, tmp_path):
    router = program("vllm-router")
    servers = [
        start("--policy", f"{MODEL}-cpu", "--set", "ignore_unknown=true", log=tmp_path / str(number))
        for number in range(2)
    ]
    address = f"http://127.0.0.1:{(port := free_port())}"
    try:
        launch(
            router, "--worker-urls", *(url for _, url in servers), "--policy", "consistent_hash", "--port", port,
            "--prometheus-port", free_port(),
        )  # fmt: skip
        until(lambda: answers(address, "/health"), 60)
        checks(address, lambda: max(servers, key=answered)[0].kill())
    finally:
        for process, _ in servers:
            process.kill()
            process.wait()


def test_ray_serve(launch):
    serve, folder = program("serve"), ROOT / "deploy/ray"
    with socket.socket() as wanted:
        if wanted.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, which the example takes, is in use")
    config = {"SOLM_POLICY": f"{MODEL}-cpu", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    log = launch(serve, "run", "--working-dir", ".", "solm_app:app", cwd=folder, **config)
    until(lambda: "is ready at" in log.read_text(), 180)  # with the second replica, too

    def kill():
        replicas = [each for each in psutil.process_iter(["cmdline"]) if "ServeReplica" in " ".join(each.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()

    checks("http://127.0.0.1:8000", kill)
