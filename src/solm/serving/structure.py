"""The parts of request bodies that ask for a structure: formats, grammars, tools, and calls of tools."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError, from_json

from solm.runtime.grammars import MAX_ALTERNATIVES, MAX_CHARACTERS
from solm.serving.settings import MAX_TOOL_CALLS, MAX_TOOLS

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""Of a tool or a schema, as OpenAI's API has it."""
Identity = Annotated[str, StringConstraints(min_length=1, max_length=128)]
JsonObject = dict[str, Any]
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]


def _object(text: str) -> str:
    try:
        known = from_json(text, allow_inf_nan=False)
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise PydanticCustomError("arguments", "it is not the JSON of an object")
    return text


ObjectText = Annotated[str, AfterValidator(_object)]
"""The JSON of an object."""


class Strict(BaseModel):
    """A part of a body: no unknown fields, and "5" and true are not accepted as numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class JsonSchema(Strict):
    """A schema with a name."""

    name: Name
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = Field(
        None, description="Refuse keywords that cannot be enforced; else those are ignored. The others always hold."
    )


class ResponseFormat(Strict):
    """What a reply has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """The same by vLLM's names: exactly one of them."""

    json_: JsonObject | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: GrammarText | None = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_ALTERNATIVES)] | None = None
    grammar: GrammarText | None = Field(None, description="In Lark, as llguidance has it, or in GBNF.")


class Function(Strict):
    """A function that the model may call. parameters: a JSON schema of an object."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(None, description="Arguments fit the schema also where the model chooses to call.")


class Tool(Strict):
    """Only functions."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """A function by its name."""

    name: Name


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """A function and the JSON of its arguments."""

    name: Name
    arguments: ObjectText


class ToolCall(Strict):
    """A call in an earlier reply."""

    id: Identity
    type: Literal["function"]
    function: CalledFunction


Tools = Annotated[list[Tool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]
ToolCalls = Annotated[list[ToolCall], Field(fail_fast=True, min_length=1, max_length=MAX_TOOL_CALLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
STRUCTURE_PARTS = (
    JsonSchema, ResponseFormat, StructuredOutputs, Function, Tool, FunctionName, NamedTool, CalledFunction, ToolCall,
)  # fmt: skip
