"""From the messages of a request to what chat templates read."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import from_json

from solm.backends.chat_template import names_tools
from solm.serving.failures import ApiError
from solm.serving.requests import Message
from solm.serving.structure import Tool, ToolCall

CALL_BEGINS, CALL_ENDS = "<tool_call>", "</tool_call>"
"""Around the JSON of a call, in Qwen 2.5's and Hermes' templates."""


def check_tools(template: str | None) -> None:
    """Raise `ApiError` for a chat template that has no tools, or whose replies call them in a form not known here."""
    if not isinstance(template, str) or not names_tools(template):
        raise ApiError(400, "this model's chat template has no tools", "tools", "unsupported_parameter")
    if CALL_BEGINS not in template or "<function=" in template:
        raise ApiError(
            400, f"this model calls tools in a form that is not known here; only JSON in {CALL_BEGINS} is", "tools",
            "unsupported_parameter",
        )  # fmt: skip


def told(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. Raises `ApiError` where fields do not go with a role."""
    return [_told(message, f"messages.{number}") for number, message in enumerate(messages)]


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates expect them, in OpenAI's form."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def _told(message: Message, place: str) -> dict[str, Any]:
    for field, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if getattr(message, field) is not None and message.role != role:
            raise ApiError(400, f"{place}.{field}: only messages with the role {role} have it", f"{place}.{field}")
    if message.role == "tool" and message.tool_call_id is None:
        where = f"{place}.tool_call_id"
        raise ApiError(400, f"{where} is missing", where, "missing_required_parameter")
    if message.content is None and message.tool_calls is None:
        raise ApiError(400, f"{place}.content is missing", f"{place}.content", "missing_required_parameter")
    parts = message.content if isinstance(message.content, list) else []
    text = "".join(part.text for part in parts) if parts or message.content is None else str(message.content)
    found: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_calls is not None:
        found["tool_calls"] = list(_calls(message.tool_calls, f"{place}.tool_calls"))
    if message.role == "tool":
        found["tool_call_id"] = str(message.tool_call_id)
        found |= {} if message.name is None else {"name": message.name}
    return found


def _calls(calls: Sequence[ToolCall], place: str) -> Iterator[dict[str, Any]]:
    for number, call in enumerate(calls):
        try:
            arguments = from_json(call.function.arguments, allow_inf_nan=False)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            where = f"{place}.{number}.function.arguments"
            raise ApiError(400, f"{where} is not the JSON of an object", where, "invalid_value")
        yield {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
