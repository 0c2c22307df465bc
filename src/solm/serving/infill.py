"""What belongs between two pieces of code: prompts of models with tokens for it, and `/infill` as llama.cpp has it."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, StringConstraints

from solm.serving.answers import Exchange, event
from solm.serving.schema import CompletionRequest, ExtraFile, ReplyRequest, Temperature, default

_FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)  # fmt: skip
"""Before the prefix, before the suffix, and where the reply begins: Qwen 2.5 Coder and CodeGemma; StarCoder and
Granite; DeepSeek Coder; Code Llama."""
_FILES = (("<|repo_name|>", "<|file_sep|>"), ("<repo_name>", "<file_sep>"))
"""Before the name of a repository, and before each file of it."""
_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|cursor|>", "<|repo_name|>", "<|file_sep|>", "<fim_pad>", "<file_sep>",
         "▁<EOT>", "<EOT>", "<|EOT|>")  # fmt: skip
"""What such replies end with, beside the model's own end tokens."""


class Filling(NamedTuple):
    """How a model is asked to fill a gap. marks: tokens of one of `_FORMS`; files: of one of `_FILES`, or none; ends:
    tokens after which a reply ends."""

    marks: tuple[int, int, int]
    files: tuple[int, ...]
    ends: list[int]

    @classmethod
    def of(cls, tokenizer: Any) -> "Filling | None":
        """That of a model's tokenizer; None where it has no tokens for it."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        token: Callable[[str], int | None] = (lambda text: None) if backend is None else backend.token_to_id

        def all_of(names: Sequence[str]) -> tuple[int, ...]:
            found = [token(name) for name in names]
            return tuple(number for number in found if number is not None) if None not in found else ()

        marks = next(filter(None, map(all_of, _FORMS)), None)
        if marks is None:
            return None
        ends = [number for number in map(token, _ENDS) if number is not None]
        return cls((marks[0], marks[1], marks[2]), next(filter(None, map(all_of, _FILES)), ()), ends)

    def prompt(
        self, tokens: Callable[[str], list[int]], before: str, after: str, files: Sequence[ExtraFile]
    ) -> list[int]:
        """The prompt for what belongs between two texts, after other files of the same repository. tokens: of a text,
        without special ones."""
        ids = list[int]()
        if files and self.files:
            repository, separator = self.files
            ids += [repository, *tokens("repository\n")]
            for file in files:
                ids += [separator, *tokens(f"{file.filename}\n{file.text}")]
            ids += [separator, *tokens("current\n")]
        first, second, middle = self.marks
        return [*ids, first, *tokens(before), second, *tokens(after), middle]


class InfillRequest(ReplyRequest):
    """`POST /infill`: llama.cpp's fields."""

    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = Field("", description="What was typed after the prefix.")
    input_extra: list[ExtraFile] = Field(default_factory=list, description="Other files.")
    n_predict: Annotated[int, Field(ge=-1, le=1 << 20)] = Field(128, description="Most tokens; -1: the server's own.")
    temperature: Annotated[Temperature, default(0.0, Temperature)] = 0.0
    repetition_penalty: float | None = Field(None, alias="repeat_penalty", ge=0.01, le=100)
    seed: int | None = Field(None, ge=-1, lt=1 << 63, description="-1: any.")
    model: Annotated[str, StringConstraints(max_length=512), default("", str)] = Field("", description="Has no effect.")
    samplers: Any = Field(None, description="Has no effect, as the following.")
    cache_prompt: Any = None
    id_slot: Any = None
    n_indent: Any = None
    t_max_prompt_ms: Any = None
    t_max_predict_ms: Any = None
    response_fields: Any = None

    def plain(self, model: str) -> CompletionRequest:
        """The completion that fills the gap."""
        made = CompletionRequest(
            **self.shared() | {"model": model, "seed": None if self.seed == -1 else self.seed},
            prompt=self.input_prefix + self.prompt, suffix=self.input_suffix,
            max_tokens=None if self.n_predict < 0 else max(1, self.n_predict),
        )  # fmt: skip
        made._files = self.input_extra
        return made


class InfillExchange(Exchange):
    """The answer to an infill."""

    def whole(self) -> dict[str, Any]:
        """The answer to a request that has been carried out."""
        return self._ended(self.choices[0].text)

    async def stream(self) -> AsyncIterator[bytes]:
        """Its server-sent events. Raises `ApiError`."""
        async for _, piece in self.each():
            yield event(self._ended("") if piece is None else {"index": 0, "content": piece.text, "stop": False})

    def _ended(self, text: str) -> dict[str, Any]:
        used, row = self.usage(), self.choices[0].row
        return {
            "index": 0, "content": text, "stop": True, "stop_type": "limit" if row.reason == "length" else "eos",
            "model": self.model, "tokens_predicted": used["completion_tokens"],
            "tokens_evaluated": used["prompt_tokens"], "tokens_cached": row.cached, "truncated": False,
            "seed": row.seed, "compute": used["compute"],
        }  # fmt: skip
