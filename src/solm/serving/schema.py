"""Bodies of requests. A field that is not listed is refused."""

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PrivateAttr, StringConstraints
from pydantic_core import PydanticCustomError, from_json

from solm.core.errors import SolmError
from solm.runtime.grammars import MAX_ALTERNATIVES, MAX_CHARACTERS
from solm.runtime.guess import guess_count
from solm.serving import settings
from solm.serving.settings import Priority

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""Of a tool or a schema, as OpenAI's API has it."""
Identity = Annotated[str, StringConstraints(min_length=1, max_length=128)]
JsonObject = dict[str, Any]
GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]


def _object(text: str) -> str:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PydanticCustomError("arguments", "it is not the JSON of an object")
    return text


ObjectText = Annotated[str, AfterValidator(_object)]
"""The JSON of an object."""


def _guess(wanted: str | int) -> str | int:
    try:
        guess_count(wanted, exact=True)
    except SolmError as error:
        raise PydanticCustomError("guess", "{message}", {"message": str(error)}) from None
    return wanted


Guess = Annotated[str | int, AfterValidator(_guess)]


class Strict(BaseModel, extra="forbid", allow_inf_nan=False, strict=True):
    """A part of a body: no unknown fields, and "5" and true are not accepted as numbers."""


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


Tools = Annotated[list[Tool], Field(fail_fast=True, min_length=1, max_length=settings.MAX_TOOLS)]
ToolCalls = Annotated[list[ToolCall], Field(fail_fast=True, min_length=1, max_length=settings.MAX_TOOL_CALLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
Stop = Annotated[str, StringConstraints(min_length=1, max_length=settings.MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Choices = Annotated[int, Field(ge=1, le=settings.MAX_CHOICES)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=settings.MAX_METADATA),
]


def default(given: Any, kind: Any) -> BeforeValidator:
    """Takes null for `given`, as OpenAI's API does, beside values of type `kind`."""
    return BeforeValidator(lambda value: given if value is None else value, json_schema_input_type=kind | None)


def only(*accepted: Any, because: str) -> BeforeValidator:
    """Refuses any value but `accepted`, and says why."""

    def checked(value: Any) -> Any:
        if not any(value is each for each in accepted):
            raise PydanticCustomError("unsupported", "{because}", {"because": because})
        return value

    return BeforeValidator(checked, json_schema_input_type=Literal[accepted])


Store = Annotated[Literal[False] | None, only(None, False, because="nothing is ever stored")]


Share = Annotated[float, Field(gt=0, le=1)]
Bits = Annotated[float, Field(ge=2, le=16)]


class AxisBudget(Strict):
    """Averages per axis. An axis that is not given is dense."""

    attention: Annotated[Share, default(1.0, Share)] = 1.0
    mlp: Annotated[Share, default(1.0, Share)] = 1.0
    bits: Annotated[Bits, default(16.0, Bits)] = 16.0


BudgetText = Annotated[str, StringConstraints(max_length=64)]  # as `BudgetRequest.parse` reads it
BudgetField = Share | BudgetText | AxisBudget


class Efficiency(Strict):
    """The compute dial of one request."""

    budget: BudgetField | None = Field(
        None,
        description="Share of the dense step's time (of its bytes, where the policy brings no step times), such as "
        '0.7, averages per axis, or text such as "keep=0.6". "loss=0.02": nats per token, as the policy predicts them '
        "or, where none decides, as guesses may give up, which is measured.",
    )
    policy: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="dense, static, or policy where the server has one."
    )
    reasoning_budget: BudgetField | None = Field(
        None, description="The same for the thinking of a model that thinks before it answers; by default as budget."
    )
    floor: BudgetField | None = Field(None, description="Least the governor may cut the budget to, in the same forms.")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=settings.MAX_DEADLINE_MS,
        description="When the reply should be complete; the budget falls to meet it.",
    )
    priority: Priority | None = Field(
        None,
        description="Under load, requests of higher priority go first and are lowered last. By default the API key's, "
        "else normal.",
    )
    trace: Annotated[bool, default(False, bool)] = Field(False, description="Report every token's action and cost.")
    guess: Guess = Field(
        "auto",
        description="Tokens that a dense reply guesses before every pass, which verifies them: auto (as many as pay; "
        "the reply stays the same), off, or a number up to 15.",
    )


class StreamOptions(Strict):
    """Only `include_usage`."""

    include_usage: Annotated[bool, default(False, bool)] = False


class ReplyRequest(Strict):
    """What all routes that write text have in common."""

    model: Annotated[str, StringConstraints(max_length=512)]
    temperature: Annotated[Temperature, default(1.0, Temperature)] = 1.0
    top_p: Annotated[TopP, default(1.0, TopP)] = 1.0
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="Of the likeliest tokens; -1 or 0: of all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Least probability, as a share of the likeliest token's.")
    presence_penalty: Annotated[Penalty, default(0.0, Penalty)] = 0.0
    frequency_penalty: Annotated[Penalty, default(0.0, Penalty)] = 0.0
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Counts the prompt; 1: none.")
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=settings.MAX_BIASES)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=settings.MAX_STOPS)] | None = None
    stream: Annotated[bool, default(False, bool)] = False
    user: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="Has no effect.")
    metadata: Metadata | None = Field(None, description="Has no effect.")
    store: Store = None
    efficiency: Efficiency | None = None

    def plain(self, model: str) -> "ChatRequest | CompletionRequest":
        """The chat or the completion of the same reply, by default this one. model: the server's name of its model.
        Raises `ValidationError` where there is none."""
        return cast(Any, self)

    def shared(self) -> JsonObject:
        """The values of what they have in common."""
        return {name: getattr(self, name) for name in ReplyRequest.model_fields}


class _Request(ReplyRequest):
    max_tokens: int | None = Field(None, ge=0, le=1 << 20)
    ignore_eos: Annotated[bool, default(False, bool)] = Field(
        False, description="Go on after tokens that end a reply, so that it has as many tokens as requested."
    )
    n: Annotated[Choices, default(1, Choices)] = 1
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Strict):
    """A piece of a message; only text."""

    type: Literal["text"]
    text: str


def text_of(content: str | list[Any] | None) -> str:
    """A text that may come in parts."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Identity | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Identity | None = None
    reasoning_content: str | None = Field(None, description="What an earlier reply thought; templates may show it.")
    refusal: None = Field(None, description="Accepted for compatibility: replies have it, and come back.")


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=settings.MAX_MESSAGES)]


class Prediction(Strict):
    """A text that the reply is expected to be like."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class Templated(Strict):
    """What the chat template is told beside the messages."""

    chat_template_kwargs: JsonObject | None = Field(None, description="Variables of the model's chat template.")
    enable_thinking: bool | None = Field(None, description="The variable of this name.")

    @property
    def told(self) -> JsonObject:
        """All variables; `chat_template_kwargs` counts where both say how to think."""
        shown = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return shown | (self.chat_template_kwargs or {})


class ChatRequest(_Request, Templated):
    """`POST /v1/chat/completions`."""

    messages: Messages
    prediction: Prediction | None = Field(
        None, description="What the reply is expected to be like: guesses come from it first. The reply stays the same."
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 20)
    logprobs: Annotated[bool, default(False, bool)] = False
    top_logprobs: int | None = Field(None, ge=0, le=settings.MAX_LOGPROBS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(None, description="auto by default.")
    parallel_tool_calls: bool | None = Field(None, description="Whether a reply may call several tools; true.")


# fail_fast: a megabyte of wrong list items gives one error and not a megabyte of them.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Prompt = (
    str
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=settings.MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=settings.MAX_PROMPTS)]
)


class ExtraFile(Strict):
    """Another file beside the one with a gap."""

    filename: str = "file"
    text: str


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    _files: list[ExtraFile] = PrivateAttr(default_factory=list)
    prompt: Prompt
    suffix: str | None = Field(None, description="What follows the completion, for models that fill gaps.")
    echo: Annotated[bool, default(False, bool)] = False
    logprobs: int | None = Field(None, ge=0, le=settings.MAX_LOGPROBS)


class TokenizeRequest(Templated):
    """`POST /tokenize`: a text, or messages through the chat template."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="Has no effect.")
    prompt: str | None = None
    messages: Messages | None = None


class DetokenizeRequest(Strict):
    """`POST /detokenize`."""

    model: Annotated[str, StringConstraints(max_length=512)] | None = Field(None, description="Has no effect.")
    tokens: TokenIds
