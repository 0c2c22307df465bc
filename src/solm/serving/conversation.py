"""From the messages of a request to what chat templates read."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_core import from_json

from solm.serving.failures import ApiError
from solm.serving.requests import Message
from solm.serving.structure import Tool, ToolCall


def template_messages(messages: Sequence[Message], identity: int | None = None) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. identity: letters and digits that the id of a call has to have, None:
    any. Raises `ApiError` where fields do not go with a role."""
    named = str if identity is None else partial(_short, length=identity)
    return [_template_message(message, f"messages.{number}", named) for number, message in enumerate(messages)]


def _short(identity: str, length: int) -> str:
    """An id of another server or form as one of `length` letters and digits."""
    plain = len(identity) == length and identity.isalnum() and identity.isascii()
    return identity if plain else hashlib.sha256(identity.encode()).hexdigest()[:length]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates expect them, in OpenAI's form."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def _template_message(message: Message, place: str, named: Callable[[str], str]) -> dict[str, Any]:
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
        found["tool_calls"] = [_call(call, named) for call in message.tool_calls]
    if message.role == "tool":
        found["tool_call_id"] = named(str(message.tool_call_id))
        found |= {} if message.name is None else {"name": message.name}
    return found


def _call(call: ToolCall, named: Callable[[str], str]) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": from_json(call.function.arguments)}
    return {"id": named(call.id), "type": "function", "function": function}
