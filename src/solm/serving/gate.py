"""Middleware for every request: API key, host name, log line and request count."""

import json
import logging
import time
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from solm.serving.failures import ApiError
from solm.serving.keys import KeyRing
from solm.serving.metrics import Metrics
from solm.serving.tracing import SpanSender, trace_id

_LOG = logging.getLogger("solm.serving.access")
OPEN = ("/health", "/health/live", "/health/ready")
_IDENTITY, _IGNORED = "x-request-id", "x-solm-ignored"
HEADERS = [_IDENTITY, _IGNORED]
"""What answers carry beside the usual headers: the number of the request in the log, and fields that were ignored."""


class Gate:
    """Refuses requests without a valid key and logs one line of JSON per request, without text.

    keys: valid API keys; none: no key is required. A key is sent as a bearer token, or as the password of HTTP Basic,
    which browsers can send; its name is `state.key` of the request. hosts: accepted names in the Host header, None:
    any. On a server that listens locally this prevents DNS rebinding: the page of another site cannot reach it under a
    host name of that site. spans: where a request that brings a trace is reported to.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        metrics: Metrics,
        hosts: Sequence[str] | None = None,
        spans: SpanSender | None = None,
    ):
        self.app, self.keys, self.metrics, self.hosts, self.spans = app, keys, metrics, hosts, spans

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
        # With a root path, paths may come with it or without.
        is_open = scope["path"].removeprefix(scope.get("root_path", "")) in OPEN
        try:
            if not self._named(headers.get(b"host", b"")):
                refusal = ApiError(400, "the Host header does not name this server", code="invalid_host")
                await refusal.response()(scope, receive, noted)
            elif is_open or (key := self.keys.of_header(headers.get(b"authorization", b""))) is not None:
                scope["state"]["key"] = "" if is_open else key
                await self.app(scope, receive, noted)
            else:
                refusal = ApiError(401, "a valid API key is needed", code="invalid_api_key")
                await refusal.response()(scope, receive, noted)
        except Exception:  # answered outside of this middleware
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, str(status)).inc()
            line = {
                "request": identity, "method": scope["method"], "route": route, "status": status,
                "seconds": round(time.perf_counter() - begun, 4), **scope["state"].get("log", {}),
            }  # fmt: skip
            if scope["state"].get("ignored"):
                line["ignored"] = scope["state"]["ignored"]
            if scope["state"].get("key"):
                line["key"] = scope["state"]["key"]
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
