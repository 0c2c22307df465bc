"""Replies as they arrive, and the responses of the API that they become."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from solm.backends.tokenizer import token_bytes
from solm.core.budget import mean_terms
from solm.serving.rows import Chosen, Ended, Piece
from solm.serving.tools import CallPart, CallReader


@dataclass
class Choice:
    """One reply as far as its events have arrived: text, tokens and, once it is complete, its end.

    before: the text of a prompt that is repeated. reader: of replies that may call tools.
    """

    index: int = 0
    before: str = ""
    reader: CallReader | None = None
    text: str = ""
    tokens: list[Chosen] = field(default_factory=list)
    ended: Ended | None = None
    begun: bool = False
    """Whether a piece of it was sent."""
    offset: int = 0
    """Characters of its tokens so far, for `text_offset`."""

    def add(self, event: Piece | Ended) -> None:
        """Take up what has arrived."""
        if isinstance(event, Ended):
            self.ended = event
        else:
            self.text += event.text
            self.tokens += event.tokens

    @property
    def finish_reason(self) -> str:
        """As the API has it; the reply is complete."""
        assert self.ended is not None
        called = self.ended.reason == "stop" and self.reader is not None and self.reader.calls
        return "tool_calls" if called else self.ended.reason

    def message(self) -> dict[str, Any]:
        """Content and calls of a reply that is complete."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.reader is None:
            return message
        content, calls = "", list[dict[str, Any]]()
        for part in [*self.reader.push(self.text), *self.reader.finish()]:
            if isinstance(part, str):
                content += part
            elif part.identity is None:
                calls[part.index]["function"]["arguments"] += part.arguments
            else:
                function = {"name": part.name, "arguments": part.arguments}
                calls.append({"id": part.identity, "type": "function", "function": function})
        return message | ({"content": content or None, "tool_calls": calls} if calls else {"content": content})

    def delta(self, text: str | None) -> dict[str, Any]:
        """What a piece of text adds to the message, None: what its end does."""
        if self.reader is None:
            return {} if text is None else {"content": text}
        parts = self.reader.finish() if text is None else self.reader.push(text)
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [part.body() for part in parts if isinstance(part, CallPart)]
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})


@dataclass
class Answers:
    """Builds the responses of one request.

    chat: a chat completion, else a plain one. logprobs: with log-probabilities. trace: with every token's action and
    cost. each: choices per prompt.
    """

    identity: str
    model: str
    tokenizer: Any
    chat: bool
    logprobs: bool
    trace: bool
    each: int
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The response of a request that is not streamed."""
        bodies = []
        for choice in choices:
            body: dict[str, Any] = {"message": choice.message()} if self.chat else {"text": choice.before + choice.text}
            bodies.append(self._body(choice, body, choice.tokens, choice.finish_reason))
        return self._envelope("chat.completion", bodies) | {"usage": self.usage(choices)}

    def piece(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """An event of a stream: more of a choice."""
        first, choice.begun = not choice.begun, True
        if self.chat:
            body: dict[str, Any] = {"delta": choice.delta(piece.text) | ({"role": "assistant"} if first else {})}
        else:
            body = {"text": (choice.before if first else "") + piece.text}
        return self._envelope("chat.completion.chunk", [self._body(choice, body, piece.tokens, None)])

    def last(self, choice: Choice) -> dict[str, Any]:
        """The event with the finish reason of a choice."""
        body: dict[str, Any] = {"delta": choice.delta(None)} if self.chat else {"text": ""}
        body |= {"index": choice.index, "finish_reason": choice.finish_reason, "logprobs": None}
        return self._envelope("chat.completion.chunk", [body])

    def spent(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The event that reports usage, after all others."""
        return self._envelope("chat.completion.chunk", []) | {"usage": self.usage(choices)}

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Tokens and compute of all choices together. `compute` is the mean over choices, weighted by their tokens; a
        prompt of several choices counts once."""
        ends = [choice.ended for choice in choices if choice.ended is not None]
        written, weights = sum(ended.tokens for ended in ends), [max(1, ended.tokens) for ended in ends]
        realised = mean_terms([ended.compute.realised for ended in ends], weights)
        read = sum(ended.prompt_tokens for ended in ends[:: self.each])
        return {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(ended.cached_tokens for ended in ends[:: self.each])},
            "compute": {
                "requested": mean_terms([ended.compute.requested for ended in ends], weights),
                "allowed": mean_terms([ended.allowed for ended in ends], weights),
                "realised": realised,
                "bytes": realised["bytes"],
            },
        }  # fmt: skip

    def _body(
        self, choice: Choice, body: dict[str, Any], tokens: Sequence[Chosen], reason: str | None
    ) -> dict[str, Any]:
        body |= {"index": choice.index, "finish_reason": reason, "logprobs": None}
        if self.logprobs:
            body["logprobs"] = self._log_probabilities(choice, tokens)
        if self.trace:
            body["efficiency"] = self.traced(tokens)
        return body

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = kind if self.chat else "text_completion"
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _log_probabilities(self, choice: Choice, tokens: Sequence[Chosen]) -> dict[str, Any]:
        if self.chat:
            entries = [
                self._entry(token.id, token.log_probability)
                | {"top_logprobs": [self._entry(other, value) for other, value in token.likely]}
                for token in tokens
            ]
            return {"content": entries, "refusal": None}
        texts = [self._text(token.id) for token in tokens]
        *offsets, choice.offset = accumulate(map(len, texts), initial=choice.offset)
        # Reversed, so that of tokens with the same text (parts of a character) the likeliest stays.
        best = [
            None if token.log_probability is None else {self._text(other): v for other, v in reversed(token.likely)}
            for token in tokens
        ]
        values = [token.log_probability for token in tokens]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}

    def _entry(self, token: int, log_probability: float | None) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": log_probability, "bytes": token_bytes(self.tokenizer, token, text)}

    def _text(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @staticmethod
    def traced(tokens: Sequence[Chosen]) -> dict[str, Any]:
        """What tokens cost."""
        spent = [token.spent.as_dict() for token in tokens if token.spent is not None]
        return {"tokens": [{name: value for name, value in each.items() if name != "id"} for each in spent]}
