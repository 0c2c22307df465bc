"""Request bodies of the API. A field that is not listed is refused."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from solm.serving.settings import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_DEADLINE_MS,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_PROMPTS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Priority,
)
from solm.serving.structure import (
    STRUCTURE_PARTS,
    Identity,
    ResponseFormat,
    StructuredOutputs,
    ToolCalls,
    ToolChoice,
    Tools,
)
from solm.serving.structure import Strict as _Strict

Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Zero = Annotated[float, Field(ge=0, le=0, description="Accepted for compatibility; only 0.")]


class AxisBudget(_Strict):
    """Averages per axis. An axis that is not given is dense."""

    attention: float = Field(1.0, gt=0, le=1)
    mlp: float = Field(1.0, gt=0, le=1)
    bits: float = Field(16.0, ge=2, le=16)


BudgetText = Annotated[str, StringConstraints(pattern="=", max_length=64)]
Asked = Annotated[float, Field(gt=0, le=1)] | BudgetText | AxisBudget


class Efficiency(_Strict):
    """The compute dial of one request."""

    budget: Asked | None = Field(
        None,
        description='Share of the dense step\'s bytes, such as 0.7, averages per axis, or text such as "keep=0.6".',
    )
    policy: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="dense, static, random, or policy where the server has one."
    )
    floor: Asked | None = Field(None, description="Least the governor may cut the budget to, in the same forms.")
    deadline_ms: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_MS, description="When the reply should be complete; the budget falls to meet it."
    )
    priority: Priority = Field(
        "normal", description="Under load, requests of higher priority go first and are lowered last."
    )
    trace: bool = Field(False, description="Report every token's action and cost.")


class StreamOptions(_Strict):
    """Only `include_usage`."""

    include_usage: bool = False


class _Request(_Strict):
    model: Annotated[str, StringConstraints(max_length=512)]
    max_tokens: int | None = Field(None, ge=0, le=1 << 20)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES)] | None = None
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    efficiency: Efficiency | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(_Strict):
    """A piece of a message; only text."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Identity | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Identity | None = None
    refusal: None = Field(None, description="Accepted for compatibility: replies have it, and come back.")


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(None, description="auto by default.")
    parallel_tool_calls: bool | None = Field(None, description="Whether a reply may call several tools; true.")


# fail_fast: a megabyte of wrong list items gives one error and not a megabyte of them.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Prompt = (
    str
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: Prompt
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class TokenizeRequest(_Strict):
    """`POST /tokenize`: a text, or messages through the chat template."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None


BODIES = (ChatRequest, CompletionRequest, TokenizeRequest)
PARTS = (Message, TextPart, Efficiency, AxisBudget, StreamOptions, *STRUCTURE_PARTS)
"""What bodies are and what they hold."""
