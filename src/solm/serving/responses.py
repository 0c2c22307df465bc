"""`/v1/responses`, the stateless part: chat completions in the form of OpenAI's Responses API."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from solm.serving.answers import Exchange, traced
from solm.serving.errors import ApiError
from solm.serving.schema import (
    ChatRequest,
    Function,
    FunctionName,
    Identity,
    JsonObject,
    Name,
    ObjectText,
    ReplyRequest,
    Strict,
    Templated,
    only,
    text_of,
)
from solm.serving.settings import MAX_MESSAGES, MAX_TOOL_CALLS, MAX_TOOLS
from solm.serving.tools import CallPart

Background = Annotated[Literal[False] | None, only(None, False, because="replies are given at once or streamed")]
Previous = Annotated[None, only(None, because="nothing is ever stored: send the whole conversation as input")]
Empty = Annotated[list[Any], Field(fail_fast=True, max_length=0)]


class InputPart(Strict):
    """A piece of an item; only text. What an earlier response had may be sent back as it came."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Empty | None = None
    logprobs: Empty | None = None


class _Item(Strict):
    id: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="Has no effect.")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(None, description="Has no effect.")


class InputItem(_Item):
    """One turn of a conversation in the Responses API."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(fail_fast=True)]


class CallItem(_Item):
    """A call of an earlier response."""

    type: Literal["function_call"]
    call_id: Identity
    name: Name
    arguments: ObjectText


class CallOutputItem(_Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Identity
    output: str | Annotated[list[InputPart], Field(fail_fast=True)]


class ReasoningPart(Strict):
    """A piece of what an earlier response thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(_Item):
    """What an earlier response thought, for templates that show it."""

    type: Literal["reasoning"]
    summary: Empty | None = None
    content: Annotated[list[ReasoningPart], Field(fail_fast=True)] | None = None
    encrypted_content: None = None


def _typed(item: Any) -> Any:
    """An item that does not say what it is, which is a message then."""
    return {"type": "message", **item} if isinstance(item, dict) else item


AnyItem = InputItem | CallItem | CallOutputItem | ReasoningItem
Item = Annotated[AnyItem, Field(discriminator="type"), BeforeValidator(_typed)]


def _messages(items: list[AnyItem]) -> list[JsonObject]:
    """The same as a chat has it: calls belong to the assistant's message before them, and thinking to that after it."""
    messages: list[JsonObject] = []
    thought: JsonObject = {}
    for item in items:
        if isinstance(item, ReasoningItem):
            thought = {"reasoning_content": text_of(item.content)}
        elif isinstance(item, InputItem):
            messages.append({"role": item.role, "content": text_of(item.content)})
            if item.role == "assistant":
                messages[-1] |= thought
                thought = {}
        elif isinstance(item, CallOutputItem):
            messages.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
        else:
            last = messages[-1] if messages else {}
            if last.get("role") != "assistant" or len(last.get("tool_calls", ())) == MAX_TOOL_CALLS:
                last, thought = {"role": "assistant"} | thought, {}
                messages.append(last)
            function = {"name": item.name, "arguments": item.arguments}
            last.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    return messages


class ResponseTool(Function):
    """A function that the model may call; nothing else is a tool here."""

    type: Literal["function"]


class ResponseNamedTool(FunctionName):
    """The tool that must be called."""

    type: Literal["function"]


class TextFormat(Strict):
    """What a response has to be: `response_format` of a chat, without its nesting."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseText(Strict):
    """Only `format`."""

    format: TextFormat | None = None


class ResponseStreamOptions(Strict):
    """Has no effect: the sizes of events are never disguised."""

    include_obfuscation: bool = False


class ResponsesRequest(ReplyRequest, Templated):
    """`POST /v1/responses`, without state."""

    input: str | Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 20)
    stream_options: ResponseStreamOptions | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = Field(
        None, description="auto by default."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether a reply may call several tools; true.")
    truncation: Literal["disabled"] | None = None
    background: Background = None
    previous_response_id: Previous = None

    def plain(self, model: str) -> ChatRequest:
        """The request of a chat whose reply is that of the response. Raises `ValidationError` where it is too much for
        one."""
        given = self.input
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        chat = self.shared() | {name: getattr(self, name) for name in Templated.model_fields}
        chat |= {"messages": messages, "max_completion_tokens": self.max_output_tokens}
        if self.text is not None and (form := self.text.format) is not None:
            schema = None
            if form.schema_ is not None:
                shared = form.model_dump(include={"description", "strict"})
                schema = {"name": form.name or "schema", "schema": form.schema_, **shared}
            chat["response_format"] = {"type": form.type, "json_schema": schema}
        if self.tools != []:  # which is none; what else concerns tools then has no effect, as in OpenAI's API
            choice: Any = self.tool_choice
            if isinstance(choice, ResponseNamedTool):
                choice = {"type": "function", "function": {"name": choice.name}}
            chat |= {"tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}
            if self.tools is not None:
                functions = [tool.model_dump(include=set(Function.model_fields)) for tool in self.tools]
                chat["tools"] = [{"type": "function", "function": function} for function in functions]
        return ChatRequest.model_validate(chat)


class ResponseExchange(Exchange):
    """Builds the response objects of one request, and the events by which they grow. What a reply says becomes items: a
    message with its text, and one item per call of a tool."""

    asked: ResponsesRequest

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._number, self._unsent = 0, b""
        self._items: list[dict[str, Any]] = []
        (self._choice,) = self.choices

    @staticmethod
    def named(error: ApiError) -> ApiError:
        """Say what is wrong by the names that fields have in the Responses API."""
        for name, theirs in (
            ("response_format.json_schema.schema", "text.format.schema"),
            ("response_format.json_schema", "text.format.schema"), ("response_format", "text.format"),
            (".function.parameters", ".parameters"), (".function.name", ".name"), ("messages", "input"),
        ):  # fmt: skip
            error.message = error.message.replace(name, theirs, 1)
            error.param = None if error.param is None else error.param.replace(name, theirs, 1)
        return error

    def whole(self) -> dict[str, Any]:
        """The response of a request that has been carried out."""
        self._add(self._choice.text, self._choice.reasoning, last=True)
        return self._done()

    async def stream(self) -> AsyncIterator[bytes]:
        """The server-sent events of a response. Raises `ApiError`."""
        self._event("response.created", response=self._response("in_progress", []))
        self._event("response.in_progress", response=self._response("in_progress", []))
        if self._choice.reader is None and not self._choice.row.may_think:
            self._begin("message")
        yield self._taken()
        async for _, arrived in self.each():
            if arrived is not None:
                self._add(arrived.text, arrived.reasoning)
                yield self._taken()
        self._add("", last=True)
        done = self._done()
        self._event(f"response.{done['status']}", response=done)
        yield self._taken()

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream in place of the response."""
        self._event("error", code=error.code, message=error.message, param=error.param)
        return self._taken()

    def _event(self, kind: str, **content: Any) -> None:
        event = {"type": kind, **content, "sequence_number": self._number}
        self._number += 1
        self._unsent += f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()

    def _taken(self) -> bytes:
        events, self._unsent = self._unsent, b""
        return events

    def _add(self, text: str, reasoning: str = "", last: bool = False) -> None:
        """What more text of the reply, and thinking before it, makes of items, and the events of that. last: the reply
        ends with it, and has at least one item then."""
        if reasoning:
            self._say(reasoning, "reasoning")
        reader = self._choice.reader
        for part in [text] if reader is None else reader.push(text, last):
            if isinstance(part, CallPart):
                self._call(part)
            elif part:
                self._say(part)
        if last and not self._items:
            self._begin("message")

    def _say(self, text: str, kind: str = "message") -> None:
        """More text of a message, or of an item of thinking."""
        if not self._items or self._items[-1]["type"] != kind:
            self._close("completed")
            self._begin(kind)
        (part,) = self._items[-1]["content"]
        part["text"] += text
        more: JsonObject = {"logprobs": []} if kind == "message" else {}
        self._event(f"response.{part['type']}.delta", **self._place(), content_index=0, delta=text, **more)

    def _begin(self, kind: str) -> None:
        """An item that has a text."""
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._add_item({"type": kind, "role": "assistant", "content": []}, "msg")
        else:
            part = {"type": "reasoning_text", "text": ""}
            self._add_item({"type": kind, "summary": [], "content": []}, "rs")
        self._items[-1]["content"].append(part)
        self._event("response.content_part.added", **self._place(), content_index=0, part=part)

    def _call(self, part: CallPart) -> None:
        if part.identity is not None:
            self._close("completed")
            call = {"type": "function_call", "call_id": part.identity, "name": part.name, "arguments": ""}
            self._add_item(call, "fc")
        if part.arguments:
            self._items[-1]["arguments"] += part.arguments
            self._event("response.function_call_arguments.delta", **self._place(), delta=part.arguments)

    def _add_item(self, item: dict[str, Any], kind: str) -> None:
        number = len(self._items)
        identity = self.identity.replace("resp", kind, 1) + (f"_{number}" if number else "")
        self._items.append(item | {"id": identity, "status": "in_progress"})
        self._event("response.output_item.added", output_index=number, item=self._items[-1])

    def _close(self, status: str) -> None:
        """End the last item, where there is one that has not ended."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item, place = self._items[-1], self._place()
        item["status"] = status
        if item["type"] != "function_call":
            (part,) = item["content"]
            more: JsonObject = {"logprobs": []} if item["type"] == "message" else {}
            self._event(f"response.{part['type']}.done", **place, content_index=0, text=part["text"], **more)
            self._event("response.content_part.done", **place, content_index=0, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            self._event("response.function_call_arguments.done", **place, **done)
        self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _done(self) -> dict[str, Any]:
        """End the last item, and give the response as it is then."""
        choice = self._choice
        status = "incomplete" if choice.row.reason == "length" else "completed"
        self._close(status)
        response = self._response(status, self._items)
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        used = self.usage()
        response["usage"] = {
            "input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"], "output_tokens_details": used["completion_tokens_details"],
            "total_tokens": used["total_tokens"], "compute": used["compute"], "energy_joules": used["energy_joules"],
        }  # fmt: skip
        if choice.row.traced:
            response["efficiency"] = traced(choice.tokens)
        return response

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        request = self.asked
        form = None if request.text is None else request.text.format
        shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        choice: Any = request.tool_choice or "auto"
        if isinstance(choice, ResponseNamedTool):
            choice = choice.model_dump()
        return {
            "id": self.identity, "object": "response", "created_at": self.created, "status": status,
            "model": self.model, "output": output, "error": None, "incomplete_details": None, "usage": None,
            **request.model_dump(include={"instructions", "max_output_tokens", "temperature", "top_p", "user"}),
            "metadata": request.metadata or {}, "seed": self._choice.row.seed, "store": False, "background": False,
            "previous_response_id": None, "truncation": "disabled", "text": {"format": shown},
            "parallel_tool_calls": request.parallel_tool_calls is not False, "tool_choice": choice,
            "tools": [tool.model_dump() for tool in request.tools or []],
        }  # fmt: skip
