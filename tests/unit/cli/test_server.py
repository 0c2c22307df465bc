"""How the server's process stops: connections that wait for nothing do not hold it up, and requests do."""

import asyncio
import socket
import ssl
import threading
import time

import httpx
import uvicorn

from helpers.serving import until
from solm.cli import server as serving


async def application(scope, receive, send):
    """A piece at once, and another one after a second."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for more, wait in ((True, 1.0 if scope["path"] == "/slow" else 0), (False, 0)):
        await send({"type": "http.response.body", "body": b"x", "more_body": more})
        await asyncio.sleep(wait)


def test_replicas_get_the_options_of_the_server_but_for_tls_and_the_rows_that_fit():
    given = ["serve", "--ssl-certfile", "a", "--model=b", "--ssl-keyfile=c", "--replicas", "4", "--api-key", "d"]
    assert serving.replica_options(given, 6) == [
        "serve", "--model=b", "--replicas", "4", "--api-key", "d", "--replicas", "1", "--max-rows", "6", "--rows-fit"
    ]  # fmt: skip


def test_idle_tls_connections_are_cut_off_and_requests_end(pem, monkeypatch):
    monkeypatch.setattr(serving, "CLOSING", 0.3)
    begun = threading.Event()
    config = uvicorn.Config(
        application, lifespan="off", log_config=None, timeout_keep_alive=75, timeout_graceful_shutdown=30,
        ssl_certfile=pem / "cert.pem", ssl_keyfile=pem / "key.pem",
    )  # fmt: skip
    server = serving.announcing(config, begun.set)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert begun.wait(30)
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        trust = ssl.create_default_context(cafile=pem / "cert.pem")
        with httpx.Client(verify=trust, timeout=30) as idle, httpx.Client(verify=trust, timeout=30) as busy:
            assert idle.get(address).content == b"xx"
            with busy.stream("GET", f"{address}/slow") as answer:
                pieces = answer.iter_bytes()
                assert next(pieces) == b"x"
                server.should_exit, stopped = True, time.monotonic()
                until(lambda: len(server.server_state.connections) == 1)
                assert b"".join(pieces) == b"x"
            thread.join(30)
        assert not thread.is_alive()
    assert time.monotonic() - stopped < 25  # asyncio would wait half a minute for the idle client
