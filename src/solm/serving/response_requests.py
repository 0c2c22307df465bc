"""Bodies of `/v1/responses`: a conversation as items, and what makes a chat's request of them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from solm.serving.requests import (
    AxisBudget,
    ChatRequest,
    CompletionRequest,
    Efficiency,
    Message,
    Sampled,
    StreamOptions,
    TextPart,
    TokenizeRequest,
    only,
)
from solm.serving.settings import MAX_MESSAGES, MAX_TOOL_CALLS, MAX_TOOLS
from solm.serving.structure import (
    STRUCTURE_PARTS,
    CalledFunction,
    Function,
    FunctionName,
    Identity,
    JsonObject,
    JsonSchema,
    Name,
    NamedTool,
    ObjectText,
    ResponseFormat,
    Strict,
    Tool,
    ToolCall,
)

Background = Annotated[Literal[False] | None, only(None, False, because="replies are given at once or streamed")]
Previous = Annotated[None, only(None, because="nothing is ever stored: send the whole conversation as input")]
Empty = Annotated[list[Any], Field(fail_fast=True, max_length=0)]


class InputPart(Strict):
    """A piece of an item; only text. What an earlier response said may be sent back as it came."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Empty | None = None
    logprobs: Empty | None = None


OldIdentity = Annotated[str, StringConstraints(max_length=512)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputItem(Strict):
    """One turn of a conversation in the Responses API. id and status have no effect."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(fail_fast=True)]
    id: OldIdentity | None = None
    status: Status | None = None


class CallItem(Strict):
    """A call of an earlier response. id and status have no effect."""

    type: Literal["function_call"]
    call_id: Identity
    name: Name
    arguments: ObjectText
    id: OldIdentity | None = None
    status: Status | None = None


class CallOutputItem(Strict):
    """What a call gave. id and status have no effect."""

    type: Literal["function_call_output"]
    call_id: Identity
    output: str | Annotated[list[InputPart], Field(fail_fast=True)]
    id: OldIdentity | None = None
    status: Status | None = None


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
    """The same as a chat has it: calls belong to what the assistant said before them."""
    found: list[Message] = []
    for item in items:
        if isinstance(item, InputItem):
            found.append(Message(role=item.role, content=_text(item.content)))
        elif isinstance(item, CallOutputItem):
            found.append(Message(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        else:
            function = CalledFunction(name=item.name, arguments=item.arguments)
            call = ToolCall(id=item.call_id, type="function", function=function)
            last = found[-1] if found and found[-1].role == "assistant" else None
            calls = [] if last is None else last.tool_calls or []
            if last is None or len(calls) == MAX_TOOL_CALLS:
                found.append(Message(role="assistant", tool_calls=[call]))
            else:
                found[-1] = last.model_copy(update={"tool_calls": [*calls, call]})
    return found


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class ResponseTool(Strict):
    """A function that the model may call; nothing else is a tool here."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(None, description="Arguments fit the schema also where the model chooses to call.")

    def as_chat(self) -> Tool:
        """The same as a chat has it."""
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class ResponseNamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    name: Name

    def as_chat(self) -> NamedTool:
        """The same as a chat has it."""
        return NamedTool(type="function", function=FunctionName(name=self.name))


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
        said = [Message(role="user", content=given)] if isinstance(given, str) else _messages(given)
        if self.instructions is not None:
            said.insert(0, Message(role="system", content=self.instructions))
        shared: dict[str, Any] = {name: getattr(self, name) for name in Sampled.model_fields}
        form = None if self.text is None or self.text.format is None else self.text.format.as_chat()
        if self.tools != []:  # which is none, and what else is said of tools then has no effect, as in OpenAI's API
            choice = self.tool_choice
            shared |= {
                "tools": None if self.tools is None else [tool.as_chat() for tool in self.tools],
                "tool_choice": choice.as_chat() if isinstance(choice, ResponseNamedTool) else choice,
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        return ChatRequest(messages=said, max_completion_tokens=self.max_output_tokens, response_format=form, **shared)


BODIES = (ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest)
PARTS = (
    Message, TextPart, Efficiency, AxisBudget, StreamOptions, InputItem, InputPart, CallItem, CallOutputItem,
    ResponseText, TextFormat, ResponseTool, ResponseNamedTool, ResponseStreamOptions, *STRUCTURE_PARTS,
)  # fmt: skip
"""What bodies are and what they hold."""
