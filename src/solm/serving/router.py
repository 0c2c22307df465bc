"""The application in front of replicas: hands requests on as they come, and answers as they come back."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from solm.serving.bodies import hung_up, read_bytes
from solm.serving.failures import ApiError
from solm.serving.keys import KeyRing
from solm.serving.replicas import Replica, Replicas
from solm.serving.routing import beginning, in_order

_NONE_READY = ApiError(503, "no replica is ready", code="starting")
_OF_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"content-length"}
"""Headers that belong to a connection, or are made anew."""
_SCHEME = b"x-forwarded-proto"
"""Header that tells a replica what the client speaks: HTTP or HTTPS."""
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>.*)")


def create_router(replicas: Replicas, keys: KeyRing, root_path: str = "") -> Starlette:
    """The application; when it ends, so do the replicas. keys: as of the replicas, which refuse requests without one.
    root_path: see `solm.serving.app.create_app`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await replicas.stop()

    metrics = [Route(path, _Metrics(replicas)) for path in {"/metrics", f"{root_path}/metrics"}]
    return Starlette(routes=[*metrics, Mount("/", _Relay(replicas, keys, root_path))], lifespan=lifespan)


class _Relay:
    """Gives every request to a replica, and its answer, status, headers and all, to the client.

    A replica that cannot be reached is passed over for another one. A client that hangs up ends the request. Of a
    request without a valid key nothing is read but its headers; a replica answers what needs no key, and refuses the
    rest, in its own order of checks and with a line in the log.
    """

    def __init__(self, replicas: Replicas, keys: KeyRing, root_path: str):
        self.replicas, self.keys, self._live = replicas, keys, {"/health/live", f"{root_path}/health/live"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            if self.keys.of_header(dict(scope["headers"]).get(b"authorization", b"")) is None:
                # Without the header, so that a replica that has not yet read the keys again refuses it, too.
                kept = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
                scope, body = {**scope, "headers": kept}, b""
            else:
                body = await read_bytes(Request(scope, receive))
        except ApiError as error:
            await _refused(error)(scope, receive, send)
            return
        answering = asyncio.ensure_future(self._answer(scope, body, receive, send))
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, gone):
                task.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        begins = beginning(body) if scope["method"] == "POST" else None
        loads = {replica.number: replica.load for replica in self.replicas.all if replica.ready}
        for number in in_order(begins, loads):
            replica = self.replicas.all[number]
            replica.load += 1
            try:
                answer = await _ask(replica, scope, body)
                if answer is not None:
                    await _hand_on(answer, send)
                    return
            except _NoAnswerError:
                ended = ApiError(502, "the replica that had this request has ended", code="replica_ended")
                await _refused(ended)(scope, receive, send)
                return
            finally:
                replica.load -= 1
        if scope["path"] in self._live:  # this process is, and starts its replicas again
            await JSONResponse({"status": "starting"})(scope, receive, send)
            return
        await _refused(_NONE_READY)(scope, receive, send)


class _Metrics:
    """The metrics of all replicas, told apart by the label ``replica``."""

    def __init__(self, replicas: Replicas):
        self.replicas = replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        texts = {}
        for replica in self.replicas.all:
            try:
                answer = await _ask(replica, scope, b"") if replica.ready else None
            except _NoAnswerError:
                answer = None
            if answer is None:
                continue
            if answer.status_code != 200:
                await _hand_on(answer, send)
                return
            texts[replica.number] = (await answer.aread()).decode()
        if not texts:
            await _refused(_NONE_READY)(scope, receive, send)
            return
        await Response(merged(texts), media_type="text/plain; version=0.0.4")(scope, receive, send)


def merged(texts: Mapping[int, str]) -> str:
    """Metrics in the text format of Prometheus, by replica, as one text."""
    families: dict[str, list[str]] = {}
    for number, text in texts.items():
        family: list[str] = []
        for line in text.splitlines():
            found = _SAMPLE.fullmatch(line)
            if found is not None:
                labels = ",".join(filter(None, (f'replica="{number}"', found["labels"])))
                family.append(f"{found['name']}{{{labels}}} {found['value']}")
            elif line.startswith("# ") and line not in (family := families.setdefault(line.split()[2], [])):
                family.append(line)
    return "".join(f"{line}\n" for family in families.values() for line in family)


class _NoAnswerError(Exception):
    """A replica was given a request and did not begin an answer."""


async def _ask(replica: Replica, scope: Scope, body: bytes) -> httpx.Response | None:
    """The answer of a replica, whose body is still to be read; None where it cannot be reached. Raises `_NoAnswerError`
    where it has the request and ends: no other one gets it, because it may be what ended this one."""
    path = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    kept = [pair for pair in scope["headers"] if pair[0] not in _OF_CONNECTION and pair[0] != _SCHEME]
    request = httpx.Request(
        scope["method"], httpx.URL("http://localhost").copy_with(raw_path=path), content=body,
        headers=[*kept, (_SCHEME, scope["scheme"].encode())],
    )  # fmt: skip
    try:
        return await replica.transport.handle_async_request(request)
    except httpx.ConnectError:
        return None
    except httpx.TransportError as error:
        raise _NoAnswerError from error


async def _hand_on(answer: httpx.Response, send: Send) -> None:
    """Send an answer to the client piece by piece. Raises what httpx does where the replica ends in the middle."""
    headers = [(name.lower(), value) for name, value in answer.headers.raw]
    kept = [pair for pair in headers if pair[0] not in _OF_CONNECTION or pair[0] == b"content-length"]
    try:
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await answer.aclose()


def _refused(error: ApiError) -> Response:
    answer = error.response()
    answer.headers["x-request-id"] = uuid.uuid4().hex[:12]
    return answer
