"""The log: lines of JSON on stderr, and traces for an OpenTelemetry collector.

Spans are sent where the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT), for requests that bring a
``traceparent`` header (W3C Trace Context). OpenTelemetry is imported only then.
"""

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from solm.core.errors import SolmError

_HEADER = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAMES = {
    "prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens",
    "finish": "gen_ai.response.finish_reasons", "method": "http.request.method", "route": "http.route",
    "status": "http.response.status_code",
}  # fmt: skip
"""OpenTelemetry's own names for what the access log holds; everything else is put under ``solm.``."""


class _Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """One JSON object a line."""

    plain = logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        time, message = self.plain.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), record.getMessage()
        line = {"time": time, "level": record.levelname, "log": record.name}
        # The access log is JSON already.
        content = json.loads(message) if record.name == "solm.serving.access" else {"message": message}
        if record.exc_info:
            content["exception"] = self.plain.formatException(record.exc_info)
        return json.dumps(line | content)

    def filter(self, record: logging.LogRecord) -> bool:
        """Not what was cancelled as the server stopped, requests or its end: uvicorn logs how many it cancels."""
        error = record.exc_info[1] if record.exc_info else None
        cancelled = isinstance(error, asyncio.CancelledError) or "CancelledError" in record.getMessage()
        return not (record.name == "uvicorn.error" and cancelled)

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written, as on a full disk, is lost; the server goes on."""


def log_lines() -> None:
    """Send the logs of this package and of uvicorn to stderr."""
    handler, level = _Lines(sys.stderr), logging.getLogger("solm").level or logging.INFO  # by --quiet or --verbose
    for name in ("solm", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "solm" else max(level, logging.INFO))


def trace_id(header: bytes) -> str | None:
    """The trace id of a ``traceparent`` header, 32 hexadecimal digits; None for a header that is not valid."""
    match = _HEADER.fullmatch(header)
    if match is None or (header.startswith(b"00") and match[2] is not None):
        return None
    return match[1].decode()


def tracing_wanted() -> bool:
    """Whether the environment names a collector. Raises `SolmError` where it does and the extra is not installed."""
    if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED") == "true":
        return False
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        needs = "OTEL_EXPORTER_OTLP_ENDPOINT is set, which needs the extra: pip install '.[otel]' in a checkout of solm"
        raise SolmError(f"{needs} ({error})") from error
    return True


class SpanSender:
    """Sends spans over OTLP (HTTP, protobuf) from a thread of its own, configured by OpenTelemetry's variables.

    A collector that does not answer costs spans, never replies. exporter: by default OTLP's.
    """

    def __init__(self, exporter: Any = None):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "solm"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("solm.serving")

    def send(self, headers: Mapping[bytes, bytes], line: Mapping[str, Any], begun: int, ended: int) -> None:
        """Queue the span of a request from `begun` to `ended`, nanoseconds since 1970.

        headers: the request's, with a valid ``traceparent``. line: the request's line in the access log.
        """
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {name: headers.get(name.encode(), b"").decode("latin-1") for name in ("traceparent", "tracestate")}
        span = self._tracer.start_span(
            f"{line['method']} {line['route']}", TraceContextTextMapPropagator().extract(sent), SpanKind.SERVER,
            attributes=span_attributes(line), start_time=begun,
        )  # fmt: skip
        if line["status"] >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(ended)

    def close(self) -> None:
        """Send what is queued."""
        self._provider.shutdown()


def span_attributes(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the access log as attributes of a span; what is nested gets names with dots."""
    attributes: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            attributes |= {f"solm.{name}.{part}": inner for part, inner in value.items()}
        elif name != "trace":  # the span has it
            attributes[_NAMES.get(name, f"solm.{name}")] = value
    return attributes
