"""What every request passes through: API key, host name, log line, and its body within limits of size and time."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from solm.serving.errors import ApiError, from_validation
from solm.serving.keys import find_key
from solm.serving.logs import SpanSender, trace_id
from solm.serving.service import Service
from solm.serving.settings import BODY_SECONDS, MAX_BODY

Body = TypeVar("Body", bound=BaseModel)
_LOG = logging.getLogger("solm.serving.access")
OPEN = ("/health", "/health/live", "/health/ready")
_MOST_NAMES = 16
"""Ignored fields that are named to the client."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_IDENTITY, _IGNORED = "x-request-id", "x-solm-ignored"
"""Headers of answers: the number of the request in the log, and fields that were ignored."""


class RequestMiddleware:
    """Refuses requests without a valid key and logs one line of JSON per request, without text.

    A key is sent as a bearer token, or as the password of HTTP Basic, which browsers can send; it is `state.key` of the
    request. hosts: accepted names in the Host header, None: any. On a server that listens locally this prevents DNS
    rebinding: the page of another site cannot reach it under a host name of that site. spans: where a request that
    brings a trace is reported to.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Sequence[str] | None, spans: SpanSender | None):
        self.app, self.service, self.hosts, self.spans = app, service, hosts, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity, status = uuid.uuid4().hex[:12], 499
        begun, begun_at = time.perf_counter(), time.time_ns()
        scope.setdefault("state", {})["identity"] = identity

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(_IDENTITY.encode(), identity.encode())]
                if ignored := scope["state"].get("ignored"):
                    more.append((_IGNORED.encode(), ",".join(ignored).encode()))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        headers = dict(scope["headers"])
        is_open = scope["path"] in (*OPEN, *(["/metrics"] if self.service.settings.open_metrics else []))
        try:
            answer, key = self.app, find_key(self.service.keys, headers.get(b"authorization", b""))
            if not self._named(headers.get(b"host", b"")):
                answer = ApiError(400, "the Host header does not name this server", code="invalid_host").response()
            elif key is not None or is_open:
                scope["state"]["key"] = key
            else:
                answer = ApiError(401, "a valid API key is needed", code="invalid_api_key").response()
            await answer(scope, receive, noted)
        except Exception:  # answered outside of this middleware
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.service.metrics.requests.labels(route, str(status)).inc()
            line = {
                "request": identity, "method": scope["method"], "route": route, "status": status,
                "seconds": round(time.perf_counter() - begun, 4), **scope["state"].get("log", {}),
            }  # fmt: skip
            if scope["state"].get("ignored"):
                line["ignored"] = scope["state"]["ignored"]
            if (key := scope["state"].get("key")) and key.name and not is_open:
                line["key"] = key.name
            if trace := trace_id(headers.get(b"traceparent", b"")):
                line["trace"] = trace
                if self.spans is not None:
                    self.spans.send(headers, line, begun_at, time.time_ns())
            _LOG.info(json.dumps(line))

    def _named(self, header: bytes) -> bool:
        try:
            return self.hosts is None or urlsplit("//" + header.decode("latin-1")).hostname in self.hosts
        except ValueError:
            return False


class BodyRoute(APIRoute):
    """A route whose function takes the request and, where it has one, its body. FastAPI documents the body and does not
    read it: it has no limits on size and time, and accepts NaN and unlimited nesting as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        kind = self.endpoint.__annotations__.get("body")
        if kind is None:
            return super().get_route_handler()

        async def answer(request: Request) -> Response:
            said = await self.endpoint(request, await read_body(request, kind, request.app.state.ignore_unknown))
            return said if isinstance(said, Response) else JSONResponse(said)

        return answer


async def read_body(request: Request, kind: type[Body], ignore_unknown: bool = False) -> Body:
    """The body as `kind`.

    ignore_unknown: fields that `kind` lacks are passed over, and their names kept as `state.ignored` of the request;
    else they are refused. Raises `ApiError`.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the content type must be application/json", code="invalid_content_type")
    body = await _read_bytes(request)
    try:
        parsed = kind.model_validate_json(body, extra="allow" if ignore_unknown else None)
    except ValidationError as error:
        raise from_validation(error) from error
    if ignore_unknown:
        ignored = list(dict.fromkeys(_extra_fields(parsed)))
        request.state.ignored = [*ignored[:_MOST_NAMES], *(["..."] if len(ignored) > _MOST_NAMES else [])]
    return parsed


async def _read_bytes(request: Request) -> bytes:
    """The body, within the limits of size and time. Raises `ApiError`."""
    body = bytearray()
    large = ApiError(413, f"the body exceeds {MAX_BODY} bytes", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} s", code="body_too_slow") from None
    except ClientDisconnect:
        raise ApiError(499, "the client disconnected") from None
    return bytes(body)


def _extra_fields(part: Any, place: str = "") -> Iterator[str]:
    """The names of all fields that models within `part` lack; list items count as one place."""
    if isinstance(part, list) and part and isinstance(part[0], BaseModel):  # and not a long list of tokens
        for item in part:
            yield from _extra_fields(item, place)
    elif isinstance(part, BaseModel):
        # What a client calls its fields may be anything, and headers and logs take the names.
        yield from (f"{place}{name if _NAME.fullmatch(name) else '?'}" for name in part.model_extra or {})
        for name in type(part).model_fields:
            yield from _extra_fields(getattr(part, name), f"{place}{name}.")
