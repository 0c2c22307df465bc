"""Limits and defaults of a server. `ServeSettings` may be set on the command line, and `/health` states them."""

from typing import Literal

from pydantic import BaseModel, Field

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")
"""Classes of requests by rank: later ones get a free place first, and keep their budgets longest under load."""


class ServeSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    """What a server accepts and how it batches."""

    max_rows: int = Field(16, ge=1, le=256)
    """Rows that decode together."""
    max_waiting: int = Field(256, ge=0, le=100_000)
    """Rows that wait for a place; more are refused with 429."""
    prefill_chunk: int = Field(128, ge=1, le=8192)
    """Prompt tokens read between two steps of the rows that decode, up to half as many more at the end of a prompt."""
    prefix_mb: float = Field(256.0, ge=0, le=1e6)
    """Megabytes of keys and values of earlier prompts that are kept; what prompts share is then read once. 0: none."""
    max_seconds: float = Field(600.0, gt=0)
    """Seconds from a request's arrival to its last token."""
    default_max_tokens: int = Field(512, ge=1)
    """Longest reply of a chat request that does not say."""
    drain_seconds: float = Field(30.0, ge=0)
    """Seconds that requests in flight get to finish when the server stops."""
    slo_tpot_ms: float | None = Field(None, gt=0)
    """Milliseconds per output token of a reply that the governor holds; None: there is no objective."""
    slo_floor: float | str | None = None
    """Budget below which the governor never goes, in any form of a budget; None: the least that there is."""
    priority_floors: dict[Priority, float | str] = Field(default_factory=dict)
    """The same for requests of a priority, in place of `slo_floor`."""
    max_model_len: int | None = Field(None, ge=1)
    """Most tokens of a prompt and its reply together; None: the model's context."""
    ignore_unknown: bool = False
    """Whether fields that the API lacks are named in a header of the answer, and not refused."""
    key_floors: dict[str, float | str] = Field(default_factory=dict, exclude=True)
    """As `slo_floor`, for requests under a named API key."""
    key_priorities: dict[str, Priority] = Field(default_factory=dict, exclude=True)
    """Priority of requests under a named API key that name none, and the highest that they may name."""
    open_metrics: bool = Field(False, exclude=True)
    """Whether `/metrics` needs no API key, for routers and scrapers that can send none."""


MAX_BODY = 1 << 20
"""Bytes of a request."""
BODY_SECONDS = 60
"""Until all of them have arrived."""
MAX_CHOICES = 8
MAX_MESSAGES = 1024
MAX_PROMPTS = 64
MAX_STOPS, MAX_STOP_LENGTH = 4, 256
MAX_LOGPROBS = 20
MAX_BIASES = 300
MAX_METADATA = 16
MAX_DEADLINE_MS = 3_600_000
MAX_TOOLS = 128
MAX_TOOL_CALLS = 16
"""Of a reply that has to call tools, and of a message."""
KEEP_ALIVE_SECONDS = 5.0
"""After which a stream that has nothing to say has a comment, because proxies and clients end silent connections."""
COMPILE_SECONDS = 5.0
"""Until a grammar is compiled; it waits twice as long at most for those before it."""
