"""Trace headers, and access lines as attributes of spans."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from solm.core.errors import SolmError
from solm.serving.logs import SpanSender, trace_id, tracing_wanted

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADER = f"00-{TRACE}-b7ad6b7169203331-01".encode()
LINE = {
    "request": "a1", "method": "POST", "route": "/v1/completions", "status": 200, "seconds": 0.5, "trace": TRACE,
    "priority": "low", "completion_tokens": 7, "requested": {"net": 0.6}, "realised": {"net": 0.61, "bytes": 0.7},
    "saved_ms": 12.5, "finish": ["stop", "length"], "key": "alice",
}  # fmt: skip


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (HEADER, TRACE), (HEADER.replace(b"00-", b"01-", 1) + b"-more", TRACE), (HEADER + b"-more", None),
        (b"", None), (HEADER.upper(), None), (HEADER[:-1], None), (b"00-" + b"0" * 32 + HEADER[35:], None),
        (HEADER + b"\n", None), (HEADER * 1000, None),
    ],
)  # fmt: skip
def test_trace_ids(header, found):
    assert trace_id(header) == found


def test_nothing_is_wanted_unless_a_collector_is_named(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not tracing_wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SolmError, match=r"pip install '\.\[otel\]' in a checkout of solm"):
        tracing_wanted()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing_wanted()


def test_a_span_arrives_at_a_collector_and_a_dead_collector_stops_nobody(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    assert tracing_wanted()
    spans = SpanSender()
    spans.send({b"traceparent": HEADER}, LINE, 1_000_000_000, 2_000_000_000)
    spans.close()
    server.shutdown()
    server.server_close()
    ((path, body),) = got
    assert path == "/v1/traces"
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    (span,) = sent.scope_spans[0].spans
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_000_000_000
    told = {each.key: each.value for each in span.attributes}
    assert told["solm.realised.net"].double_value == 0.61
    assert told["gen_ai.usage.output_tokens"].int_value == 7
    assert [each.value.string_value for each in sent.resource.attributes if each.key == "service.name"] == ["solm"]
    dead = SpanSender()
    dead.send({b"traceparent": HEADER}, LINE, 1, 2)  # returns though nobody listens any more
    dead.close()


def test_opentelemetry_is_not_imported_for_a_server_without_collector():
    code = "import sys, solm.serving.app; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
