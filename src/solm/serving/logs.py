"""Log lines of JSON on stderr."""

import asyncio
import json
import logging
import sys


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written, as on a full disk, is lost; the server goes on."""


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname, "log": record.name}
        message = record.getMessage()
        # The access log is JSON already.
        known = json.loads(message) if record.name == "solm.serving.access" else {"message": message}
        if record.exc_info:
            known["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | known)


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Not a request that was cancelled as the server stopped: uvicorn has said how many it cancels."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "uvicorn.error" and isinstance(error, asyncio.CancelledError))


def line_handler() -> logging.Handler:
    """Writes records to stderr, one JSON object a line."""
    handler = _Handler(sys.stderr)
    handler.addFilter(_worth_a_line)
    handler.setFormatter(_Lines())
    return handler


def log_lines() -> None:
    """Send the logs of this package and of uvicorn to stderr, one JSON object a line."""
    handler = line_handler()
    asked = logging.getLogger("solm").level or logging.INFO  # by --quiet or --verbose
    for name in ("solm", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(asked if name == "solm" else max(asked, logging.INFO))
