"""Log lines of JSON on stderr."""

import json
import logging
import sys


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname, "log": record.name}
        message = record.getMessage()
        # The access log is JSON already.
        known = json.loads(message) if record.name == "solm.serving.access" else {"message": message}
        if record.exc_info:
            known["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | known)


def log_lines() -> None:
    """Send the logs of this package and of uvicorn to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("solm", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
