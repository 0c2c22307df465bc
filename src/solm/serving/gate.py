"""Middleware for every request: API key, host name, log line and request count."""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from solm.serving.failures import ApiError
from solm.serving.keys import ApiKey
from solm.serving.metrics import Metrics
from solm.serving.tracing import SpanSender, trace_id

_LOG = logging.getLogger("solm.serving.access")
OPEN = ("/health", "/health/live", "/health/ready")


class Gate:
    """Refuses requests without a valid key and logs one line of JSON per request, without text.

    keys: valid API keys, ``SECRET`` or ``NAME:SECRET``; none: no key is required. The name of the key that was sent is
    `state.key` of the request. A key is sent as a bearer token, or as the password of HTTP Basic,
    which browsers can send. hosts: accepted names in the Host header, None: any. On a server that listens locally this
    prevents DNS rebinding: the page of another site cannot reach it under a host name of that site. spans: where a
    request that brings a trace is reported to.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        metrics: Metrics,
        hosts: Sequence[str] | None = None,
        spans: SpanSender | None = None,
    ):
        self.app, self.metrics, self.hosts, self.spans = app, metrics, hosts, spans
        known = [ApiKey.parse(key) for key in keys]
        self._digests = [(hashlib.sha256(key.secret.encode()).digest(), key.name) for key in known]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity, begun, began, status = uuid.uuid4().hex[:12], time.perf_counter(), time.time_ns(), 499
        scope.setdefault("state", {})["identity"] = identity

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identity.encode())]
            await send(message)

        headers = dict(scope["headers"])
        try:
            if not self._named(headers.get(b"host", b"")):
                refusal = ApiError(400, "the Host header does not name this server", code="invalid_host")
                await refusal.response()(scope, receive, noted)
            elif scope["path"] in OPEN or (key := self._key(headers.get(b"authorization", b""))) is not None:
                scope["state"]["key"] = "" if scope["path"] in OPEN else key
                await self.app(scope, receive, noted)
            else:
                refusal = ApiError(401, "a valid API key is needed", code="invalid_api_key")
                await refusal.response()(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(route, str(status)).inc()
            line = {
                "request": identity, "method": scope["method"], "route": route, "status": status,
                "seconds": round(time.perf_counter() - begun, 4), **scope["state"].get("log", {}),
            }  # fmt: skip
            if scope["state"].get("key"):
                line["key"] = scope["state"]["key"]
            if trace := trace_id(headers.get(b"traceparent", b"")):
                line["trace"] = trace
                if self.spans is not None:
                    self.spans.send(headers, line, began, time.time_ns())
            _LOG.info(json.dumps(line))

    def _named(self, header: bytes) -> bool:
        try:
            return self.hosts is None or urlsplit("//" + header.decode("latin-1")).hostname in self.hosts
        except ValueError:
            return False

    def _key(self, header: bytes) -> str | None:
        """The name of the key in an Authorization header; None for no valid one."""
        if not self._digests:
            return ""
        scheme, _, given = header.decode("latin-1").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except binascii.Error:
                return None
        elif scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(given.strip().encode("utf-8", "replace")).digest()
        # All keys are compared, so that the time taken does not reveal which one matched.
        matches = [name for known, name in self._digests if hmac.compare_digest(digest, known)]
        return matches[0] if matches else None
