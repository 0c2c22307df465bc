"""`/v1/responses`, the stateless part: chat completions in the form of OpenAI's Responses API."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from solm.serving.answers import Exchange, traced
from solm.serving.errors import ApiError
from solm.serving.scheduler import Piece
from solm.serving.schema import (
    CalledFunction,
    ChatRequest,
    Function,
    FunctionName,
    Identity,
    JsonObject,
    JsonSchema,
    Message,
    Name,
    NamedTool,
    ObjectText,
    ResponseFormat,
    Sampled,
    Strict,
    Tool,
    ToolCall,
    only,
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


def _kind(item: Any) -> Any:
    """What an item says it is; by default a message."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")


Item = Annotated[
    Annotated[InputItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="the type of an item must be message, function_call or function_call_output",
    ),
]


def _messages(items: list[InputItem | CallItem | CallOutputItem]) -> list[Message]:
    """The same as a chat has it: calls belong to the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, InputItem):
            messages.append(Message(role=item.role, content=_text(item.content)))
        elif isinstance(item, CallOutputItem):
            messages.append(Message(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        else:
            function = CalledFunction(name=item.name, arguments=item.arguments)
            call = ToolCall(id=item.call_id, type="function", function=function)
            last = messages[-1] if messages and messages[-1].role == "assistant" else None
            calls = [] if last is None else last.tool_calls or []
            if last is None or len(calls) == MAX_TOOL_CALLS:
                messages.append(Message(role="assistant", tool_calls=[call]))
            else:
                messages[-1] = last.model_copy(update={"tool_calls": [*calls, call]})
    return messages


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


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

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise PydanticCustomError("missing_schema", "the type json_schema needs a schema")
        if self.type != "json_schema" and self.schema_ is not None:
            raise PydanticCustomError("wrong_type", "a schema needs the type json_schema")
        return self

    def as_chat(self) -> ResponseFormat:
        """The same as a chat has it."""
        schema = None
        if self.schema_ is not None:
            schema = JsonSchema(
                name=self.name or "schema", description=self.description, schema=self.schema_, strict=self.strict
            )
        return ResponseFormat(type=self.type, json_schema=schema)


class ResponseText(Strict):
    """Only `format`."""

    format: TextFormat | None = None


class ResponseStreamOptions(Strict):
    """Has no effect: the sizes of events are never disguised."""

    include_obfuscation: bool = False


class ResponsesRequest(Sampled):
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

    def as_chat(self) -> ChatRequest:
        """The request of a chat whose reply is that of the response."""
        given = self.input
        messages = [Message(role="user", content=given)] if isinstance(given, str) else _messages(given)
        if self.instructions is not None:
            messages.insert(0, Message(role="system", content=self.instructions))
        shared: dict[str, Any] = {name: getattr(self, name) for name in Sampled.model_fields}
        form = None if self.text is None or self.text.format is None else self.text.format.as_chat()
        if self.tools != []:  # which is none; what else concerns tools then has no effect, as in OpenAI's API
            choice: Any = self.tool_choice
            if isinstance(choice, ResponseNamedTool):
                choice = NamedTool(type="function", function=FunctionName(name=choice.name))
            shared |= {"tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}
            if self.tools is not None:
                functions = [Function(**tool.model_dump(exclude={"type"})) for tool in self.tools]
                shared["tools"] = [Tool(type="function", function=function) for function in functions]
        return ChatRequest(
            messages=messages, max_completion_tokens=self.max_output_tokens, response_format=form, **shared
        )


class ResponseWriter:
    """Builds the response objects of one request, and the events by which they grow. What a reply says becomes items: a
    message with its text, and one item per call of a tool."""

    def __init__(self, request: ResponsesRequest, exchange: Exchange):
        self.request, self.exchange = request, exchange
        self.identity = exchange.identity
        self._sent = 0
        self._items: list[dict[str, Any]] = []
        (self._choice,) = exchange.choices

    def whole(self) -> dict[str, Any]:
        """The response of a request that has been carried out."""
        # The items are what counts here; nobody gets the events.
        for _ in self._add(self._choice.text, last=True):
            continue
        return self._done()

    async def stream(self) -> AsyncIterator[bytes]:
        """The server-sent events of a response. Raises `ApiError`."""
        yield self._event("response.created", response=self._response("in_progress", []))
        yield self._event("response.in_progress", response=self._response("in_progress", []))
        if self._choice.reader is None:
            for event in self._begin_message():
                yield event
        async for _, arrived in self.exchange.each():
            if isinstance(arrived, Piece):
                for event in self._add(arrived.text):
                    yield event
        for event in self._add("", last=True):
            yield event
        done = self._done()
        for event in self._close(done["status"]):
            yield event
        yield self._event(f"response.{done['status']}", response=done)

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream in place of the response."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _add(self, text: str, last: bool = False) -> Iterator[bytes]:
        """What more text of the reply makes of items, and the events of that. last: the reply ends with it, and has at
        least one item then."""
        for part in self._choice.parts(text, last):
            if isinstance(part, CallPart):
                yield from self._call(part)
            elif part:
                yield from self._text(part)
        if last and not self._items:
            yield from self._begin_message()

    def _text(self, text: str) -> Iterator[bytes]:
        if not self._items or self._items[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._begin_message()
        (part,) = self._items[-1]["content"]
        part["text"] += text
        yield self._event("response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=[])

    def _begin_message(self) -> Iterator[bytes]:
        message = {"type": "message", "id": self._name("msg"), "status": "in_progress", "role": "assistant"}
        self._items.append(message | {"content": []})
        yield self._event("response.output_item.added", **self._numbered(), item=self._items[-1])
        self._items[-1]["content"].append(_part(""))
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=_part(""))

    def _call(self, part: CallPart) -> Iterator[bytes]:
        if part.identity is not None:
            yield from self._close("completed")
            call = {"type": "function_call", "id": self._name("fc"), "call_id": part.identity, "name": part.name}
            self._items.append(call | {"arguments": "", "status": "in_progress"})
            yield self._event("response.output_item.added", **self._numbered(), item=self._items[-1])
        if part.arguments:
            self._items[-1]["arguments"] += part.arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=part.arguments)

    def _close(self, status: str) -> Iterator[bytes]:
        """The events that end the last item, where there is one that has not ended."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item, place = self._items[-1], self._place()
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            yield self._event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **place, **done)
        yield self._event("response.output_item.done", **self._numbered(), item=item)

    def _numbered(self) -> dict[str, Any]:
        return {"output_index": len(self._items) - 1}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], **self._numbered()}

    def _name(self, kind: str) -> str:
        """The identity of the next item."""
        number = len(self._items)
        return self.identity.replace("resp", kind, 1) + (f"_{number}" if number else "")

    def _event(self, kind: str, **content: Any) -> bytes:
        event = {"type": kind, **content, "sequence_number": self._sent}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()

    def _done(self) -> dict[str, Any]:
        """The response at its end; the last item may still be in progress, and is then shown as it will be."""
        choice = self._choice
        assert choice.ended is not None
        status = "incomplete" if choice.ended.reason == "length" else "completed"
        *before, last = self._items
        before = [item | {"status": "completed"} for item in before]
        response = self._response(status, [*before, last | {"status": status}])
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        used = self.exchange.usage()
        response["usage"] = {
            "input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"], "compute": used["compute"],
        }  # fmt: skip
        if self.exchange.jobs[0].trace:
            response["efficiency"] = traced(choice.tokens)
        return response

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        request = self.request
        form = None if request.text is None or request.text.format is None else request.text.format
        shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        chosen = (
            request.tool_choice if isinstance(request.tool_choice, str | None) else request.tool_choice.model_dump()
        )
        return {
            "id": self.identity, "object": "response", "created_at": self.exchange.created, "status": status,
            "model": self.exchange.model, "output": output, "error": None, "incomplete_details": None,
            "usage": None, "instructions": request.instructions, "max_output_tokens": request.max_output_tokens,
            "temperature": request.temperature, "top_p": request.top_p, "metadata": request.metadata or {},
            "user": request.user, "store": False, "background": False, "previous_response_id": None,
            "truncation": "disabled", "text": {"format": shown},
            "parallel_tool_calls": request.parallel_tool_calls is not False, "tool_choice": chosen or "auto",
            "tools": [tool.model_dump() for tool in request.tools or []],
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
