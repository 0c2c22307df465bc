"""A stand-in for the hub: one repository over HTTP, as huggingface_hub asks for it."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"


class StandIn(ThreadingHTTPServer):
    """files: by name their bytes. breaks: requests for a file that end after half of it. lies: whether digests are of
    something else. asked: ranges that were asked for."""

    def __init__(self, repository: str, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.files = repository, files
        self.breaks, self.lies = 0, False
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *given):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, path = self.server, self.path.split("?")[0]
        if path == f"/api/models/{server.repository}":
            files = [{"rfilename": name} for name in server.files]
            return self.answer(200, json.dumps({"id": server.repository, "sha": COMMIT, "siblings": files}).encode())
        found = re.fullmatch(f"/{server.repository}/resolve/[^/]+/(.+)", path)
        if found is None or found[1] not in server.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound" if found is None else "EntryNotFound"})
        data = server.files[found[1]]
        etag = hashlib.sha256(b"lie" if server.lies else data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not body:
            return self.answer(200, data, headers, body=False)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        server.breaks -= 1
        return self.answer(206 if start else 200, data[start:], headers, broken=server.breaks >= 0)

    def answer(self, status, data, headers=None, body=True, broken=False):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection = True


@contextmanager
def hub(repository: str, files: dict[str, bytes]):
    """The stand-in, and its address."""
    server = StandIn(repository, files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
