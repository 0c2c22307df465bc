"""The application in front of replicas, with made-up ones on Unix sockets."""

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from helpers.serving import until
from solm.serving.keys import ApiKey, KeyRing
from solm.serving.replicas import Replica
from solm.serving.router import create_router, merged


@contextmanager
def serving(app, **where):
    """A uvicorn server in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, **where)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


class Imitation:
    """Answers with its number and what it was asked, piece by piece where the path says so, and notes who hung up."""

    def __init__(self, number):
        self.number, self.seen, self.hung_up = number, [], threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.seen.append((scope, body))
        headers = [(b"x-replica", str(self.number).encode()), (b"x-request-id", b"7"), (b"set-cookie", b"a=b")]
        status = 418 if scope["path"] == "/odd" else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["path"] == "/endless":
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            self.hung_up.set()
            return
        text = (
            f"# HELP a What.\n# TYPE a counter\na {self.number}.0\n".encode() if scope["path"] == "/metrics" else body
        )
        await send({"type": "http.response.body", "body": text})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a router, its keys, its replicas and what imitates them."""
    folder, stopped, keys = tmp_path_factory.mktemp("s"), [], KeyRing()

    async def stop():
        stopped.append(True)

    imitations = [Imitation(number) for number in range(3)]
    replicas = SimpleNamespace(all=[Replica(number, folder / str(number)) for number in range(3)], stop=stop)
    with ExitStack() as stack:
        for replica, imitation in zip(replicas.all, imitations, strict=True):
            stack.enter_context(serving(imitation, uds=str(replica.socket), lifespan="off"))
            replica.ready = True
        router = serving(create_router(replicas, keys), port=0, lifespan="on", date_header=False, server_header=False)
        server = stack.enter_context(router)
        port = server.servers[0].sockets[0].getsockname()[1]
        http = stack.enter_context(httpx.Client())  # one that is made for every request takes most of the time
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{port}", keys=keys, replicas=replicas.all, imitations=imitations, http=http
        )
    assert stopped == [True]


def asked(served, number):
    conversation = {"messages": [{"role": "user", "content": f"conversation {number}"}]}
    return served.http.post(f"{served.address}/v1/chat/completions?a=%2Fb", json=conversation, headers={"X-Own": "1"})


def test_requests_and_answers_pass_through_unchanged(served):
    answer = asked(served, 0)
    scope, body = served.imitations[int(answer.headers["x-replica"])].seen[-1]
    assert json.loads(body) == answer.json() == {"messages": [{"role": "user", "content": "conversation 0"}]}
    assert (scope["path"], scope["query_string"], scope["method"]) == ("/v1/chat/completions", b"a=%2Fb", "POST")
    headers = dict(scope["headers"])
    assert headers[b"x-own"] == b"1"
    assert headers[b"host"] == served.address.removeprefix("http://").encode()
    assert answer.headers.get_list("x-request-id") == ["7"]
    assert len(answer.headers.get_list("date")) == 1
    odd = served.http.get(f"{served.address}/odd")
    assert (odd.status_code, odd.content) == (418, b"")


def test_conversations_stay_at_their_replicas(served):
    first = [asked(served, number).headers["x-replica"] for number in range(20)]
    assert first == [asked(served, number).headers["x-replica"] for number in range(20)]
    assert set(first) == {"0", "1", "2"}


def test_a_replica_that_is_gone_is_passed_over(served):
    at = int(asked(served, 1).headers["x-replica"])
    replica = served.replicas[at]
    transport, replica.transport = replica.transport, httpx.AsyncHTTPTransport(uds="/nowhere")
    try:
        assert int(asked(served, 1).headers["x-replica"]) != at
        for other in served.replicas:
            other.ready = False
        refused = asked(served, 1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starting")
        assert refused.headers["x-request-id"]
        assert served.http.get(f"{served.address}/metrics").status_code == 503
        live = served.http.get(f"{served.address}/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "starting"}), "restarting it would not help"
    finally:
        replica.transport = transport
        for other in served.replicas:
            other.ready = True
    assert int(asked(served, 1).headers["x-replica"]) == at


def test_a_request_that_ends_a_replica_is_given_to_no_other(served, monkeypatch):
    at = int(asked(served, 1).headers["x-replica"])

    async def cut(request):
        raise httpx.RemoteProtocolError("the replica has ended")

    monkeypatch.setattr(served.replicas[at].transport, "handle_async_request", cut)
    before = [len(imitation.seen) for imitation in served.imitations]
    answer = asked(served, 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_ended")
    assert [len(imitation.seen) for imitation in served.imitations] == before


def test_pieces_arrive_as_they_come_and_a_client_that_hangs_up_ends_the_request(served):
    with served.http.stream("GET", f"{served.address}/endless") as answer:
        pieces = answer.iter_raw()  # kept, because one that nobody holds hangs up
        assert next(pieces) == b"data: 1\n\n"
        imitation = served.imitations[int(answer.headers["x-replica"])]
        assert sum(replica.load for replica in served.replicas) == 1
        assert not imitation.hung_up.is_set()
    assert imitation.hung_up.wait(10)
    until(lambda: not any(replica.load for replica in served.replicas))


def test_a_body_that_is_too_large_is_refused_in_the_apis_form(served):
    seen = sum(len(imitation.seen) for imitation in served.imitations)
    refused = served.http.post(f"{served.address}/v1/completions", content=b" " * ((1 << 20) + 1))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert sum(len(imitation.seen) for imitation in served.imitations) == seen


def test_without_a_valid_key_only_headers_are_read_and_a_replica_answers(served):
    large = b" " * ((1 << 20) + 1)
    url, valid = f"{served.address}/v1/completions", {"Authorization": "Bearer one"}
    served.keys.replace([ApiKey("one")])
    try:
        for headers in ({}, {"Authorization": "Bearer two"}):
            answer = served.http.post(url, content=large, headers=headers | {"X-Own": "1"})
            assert answer.status_code == 200  # of what imitates a replica
            scope, body = served.imitations[int(answer.headers["x-replica"])].seen[-1]
            passed = dict(scope["headers"])
            assert (body, passed[b"content-length"], passed[b"x-own"]) == (b"", b"0", b"1")
            assert b"authorization" not in passed
        assert served.http.post(url, content=large, headers=valid).status_code == 413
        answer = served.http.post(url, content=b"{}", headers=valid)
        scope, body = served.imitations[int(answer.headers["x-replica"])].seen[-1]
        assert (body, dict(scope["headers"])[b"authorization"]) == (b"{}", b"Bearer one")
    finally:
        served.keys.replace([])


def test_replicas_learn_what_the_client_speaks(served):
    for given, told in ({}, "http"), ({"X-Forwarded-Proto": "https"}, "https"):  # from a proxy on this machine
        answer = served.http.get(f"{served.address}/v1/models", headers=given)
        scope = served.imitations[int(answer.headers["x-replica"])].seen[-1][0]
        assert [value for name, value in scope["headers"] if name == b"x-forwarded-proto"] == [told.encode()]


def test_metrics_of_all_replicas_are_told_apart(served):
    text = served.http.get(f"{served.address}/metrics").text
    assert text.splitlines() == [
        "# HELP a What.", "# TYPE a counter", 'a{replica="0"} 0.0', 'a{replica="1"} 1.0', 'a{replica="2"} 2.0'
    ]  # fmt: skip
    found = merged({0: '# TYPE b counter\nb{c="} d"} 1\n# TYPE e gauge\ne 2\n', 2: "# TYPE e gauge\ne 3e+01\n"})
    assert found.splitlines() == [
        "# TYPE b counter", 'b{replica="0",c="} d"} 1', "# TYPE e gauge", 'e{replica="0"} 2', 'e{replica="2"} 3e+01'
    ]  # fmt: skip


def test_a_slow_answer_holds_up_nobody(served):
    with served.http.stream("GET", f"{served.address}/endless") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        begun = time.monotonic()
        assert asked(served, 3).status_code == 200
        assert time.monotonic() - begun < 5
