"""Responses of the API, in the types of the `openai` package."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from solm.backends.tokenizer import token_bytes
from solm.core.budget import mean_terms
from solm.serving.calls import CallPart, CallReader
from solm.serving.rows import Ended, Piece, Said


@dataclass
class Choice:
    """One reply as far as its events have arrived: text, tokens and, once it is complete, its end."""

    text: str = ""
    said: list[Said] = field(default_factory=list)
    ended: Ended | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.said += piece.tokens


class Answers:
    """Builds the response objects of one request.

    chat: a chat completion, else a plain one. logprobs: with log-probabilities. trace: with every token's action and
    cost. each: choices per prompt. reader: makes what reads the calls of a reply; None: there are no tools.
    """

    def __init__(
        self,
        identity: str,
        model: str,
        tokenizer: Any,
        chat: bool,
        logprobs: bool,
        trace: bool,
        each: int,
        reader: Callable[[], CallReader] | None = None,
    ):
        self.identity, self.model, self.tokenizer = identity, model, tokenizer
        self.chat, self.logprobs, self.trace, self.each = chat, logprobs, trace, each
        self.created = int(time.time())
        self._told: Counter[int] = Counter()
        """Characters of every choice's tokens so far, for `text_offset`."""
        self.reader, self._readers = reader, defaultdict[int, CallReader](reader)
        """By choice, of replies that may call tools."""

    def whole(self, choices: list[Choice], echo: list[str]) -> BaseModel:
        """The response of a request that is not streamed. echo: the text to put before every choice."""
        found = []
        for index, (choice, before) in enumerate(zip(choices, echo, strict=True)):
            assert choice.ended is not None
            body: dict[str, Any] = {"index": index, "finish_reason": choice.ended.reason, "logprobs": None}
            if self.chat:
                body["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
                if self.reader is not None:
                    body["message"] |= self._called(index, choice.text)
                    body["finish_reason"] = self._reason(index, choice.ended)
            else:
                body["text"] = before + choice.text
            if self.logprobs:
                body["logprobs"] = self._log_probabilities(index, choice.said)
            if self.trace:
                body["efficiency"] = self.traced(choice.said)
            found.append(body)
        if not self.chat:
            return self._completion(found, self.usage(choices))
        return ChatCompletion.model_validate(self._envelope("chat.completion", found) | {"usage": self.usage(choices)})

    def piece(self, index: int, piece: Piece, first: bool, before: str = "") -> BaseModel:
        """One event of a stream."""
        body: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        if self.chat:
            body["delta"] = self._delta(index, piece.text) | ({"role": "assistant"} if first else {})
        else:
            body["text"] = before + piece.text
        if self.logprobs:
            body["logprobs"] = self._log_probabilities(index, list(piece.tokens))
        if self.trace:
            body["efficiency"] = self.traced(piece.tokens)
        return self._event([body])

    def last(self, index: int, ended: Ended) -> BaseModel:
        """The event with the finish reason of a choice."""
        left = self._delta(index, None) if self.reader is not None else {}
        body: dict[str, Any] = {"index": index, "finish_reason": self._reason(index, ended), "logprobs": None}
        body["delta" if self.chat else "text"] = left if self.chat else ""
        return self._event([body])

    def spent(self, choices: list[Choice]) -> BaseModel:
        """The event that reports usage, after all others."""
        return self._event([], self.usage(choices))

    def usage(self, choices: list[Choice]) -> CompletionUsage:
        """Tokens and compute of all choices together. `compute` is the mean over choices, weighted by their tokens; a
        prompt of several choices counts once."""
        ends = [choice.ended for choice in choices if choice.ended is not None]
        written, weights = sum(ended.tokens for ended in ends), [max(1, ended.tokens) for ended in ends]
        realised = mean_terms([ended.compute.realised for ended in ends], weights)
        read = sum(ended.prompt_tokens for ended in ends[:: self.each])
        return CompletionUsage.model_validate(
            {
                "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
                "prompt_tokens_details": {"cached_tokens": sum(ended.cached_tokens for ended in ends[:: self.each])},
                "compute": {
                    "requested": mean_terms([ended.compute.requested for ended in ends], weights),
                    "allowed": mean_terms([ended.allowed for ended in ends], weights),
                    "realised": realised,
                    "bytes": realised["bytes"],
                },
            }
        )  # fmt: skip

    def _reason(self, index: int, ended: Ended) -> str:
        called = ended.reason == "stop" and index in self._readers and self._readers[index].calls
        return "tool_calls" if called else ended.reason

    def _delta(self, index: int, text: str | None) -> dict[str, Any]:
        """What a piece of text adds to a choice, None: what its end does."""
        if self.reader is None:
            return {"content": text}
        reader = self._readers[index]
        parts = reader.finish() if text is None else reader.push(text)
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [part.body() for part in parts if isinstance(part, CallPart)]
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})

    def _called(self, index: int, text: str) -> dict[str, Any]:
        """Content and calls of a complete reply."""
        reader, content, calls = self._readers[index], "", list[dict[str, Any]]()
        for part in [*reader.push(text), *reader.finish()]:
            if isinstance(part, str):
                content += part
            elif part.identity is not None:
                calls.append(
                    {
                        "id": part.identity, "type": "function",
                        "function": {"name": part.name, "arguments": part.arguments},
                    }
                )  # fmt: skip
            else:
                calls[part.index]["function"]["arguments"] += part.arguments
        return {"content": content or None, "tool_calls": calls} if calls else {"content": content}

    def _event(self, choices: list[dict[str, Any]], used: CompletionUsage | None = None) -> BaseModel:
        if not self.chat:
            return self._completion(choices, used)
        more = {} if used is None else {"usage": used}
        return ChatCompletionChunk.model_validate(self._envelope("chat.completion.chunk", choices) | more)

    def _completion(self, choices: list[dict[str, Any]], used: CompletionUsage | None) -> BaseModel:
        # The API says null for a finish reason that is not known yet and for the log-probability of a prompt's first
        # token; the package's type knows neither.
        unchecked: Any = Completion.model_construct
        more = {} if used is None else {"usage": used}
        built: BaseModel = unchecked(**self._envelope("text_completion", choices), **more)
        return built

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.identity, "object": kind, "created": self.created, "model": self.model, "choices": choices,
        }  # fmt: skip

    def _log_probabilities(self, index: int, said: list[Said]) -> dict[str, Any]:
        if self.chat:
            entries = [
                self._entry(token.id, token.log_probability)
                | {"top_logprobs": [self._entry(other, value) for other, value in token.likely]}
                for token in said
            ]
            return {"content": entries, "refusal": None}
        texts = [self._text(token.id) for token in said]
        *offsets, self._told[index] = accumulate(map(len, texts), initial=self._told[index])
        # Reversed, so that of tokens with the same text (parts of a character) the likeliest stays.
        best = [
            None if token.log_probability is None else {self._text(other): v for other, v in reversed(token.likely)}
            for token in said
        ]
        values = [token.log_probability for token in said]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}

    def _entry(self, token: int, log_probability: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": log_probability, "bytes": token_bytes(self.tokenizer, token, text)}

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @staticmethod
    def traced(said: Sequence[Said]) -> dict[str, Any]:
        """What tokens cost."""
        tokens = [
            {
                "text": token.spent.text, "action": token.spent.action, "cost": token.spent.cost,
                "realised": token.spent.realised, "controllable": token.spent.controllable,
            }
            for token in said
            if token.spent is not None
        ]  # fmt: skip
        return {"tokens": tokens}
