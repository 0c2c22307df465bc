"""Requests in progress: replies as they arrive, and the responses of the API that they become."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from solm.backends.tokenizer import token_bytes
from solm.core.budget import mean_terms
from solm.serving.errors import ApiError
from solm.serving.scheduler import Chosen, Event, Piece, Row
from solm.serving.schema import ChatRequest, CompletionRequest, ReplyRequest
from solm.serving.tools import CallPart, CallReader


@dataclass
class Choice:
    """One reply as far as its events have arrived: text, thinking and tokens. Its row belongs to the scheduler's thread
    until it has ended.

    before: the text of a prompt that is repeated. reader: of replies that may call tools.
    """

    index: int
    row: Row
    before: str = ""
    reader: CallReader | None = None
    text: str = ""
    reasoning: str = ""
    tokens: list[Chosen] = field(default_factory=list)
    ended: bool = False
    begun: bool = False
    """Whether a piece of it was sent."""
    offset: int = 0
    """Characters of its tokens so far, for `text_offset`."""

    @property
    def finish_reason(self) -> str | None:
        """As the API has it; the reply is complete."""
        called = self.row.reason == "stop" and self.reader is not None and self.reader.calls
        return "tool_calls" if called else self.row.reason

    def message(self) -> dict[str, Any]:
        """Content and calls of a reply that is complete."""
        said = self.delta(self.text, last=True)
        message: dict[str, Any] = {"role": "assistant", "content": said.get("content", ""), "refusal": None}
        if self.row.may_think:
            message["reasoning_content"] = self.reasoning or None
        if calls := said.get("tool_calls"):
            for call in calls:
                del call["index"]
            message |= {"content": message["content"] or None, "tool_calls": calls}
        return message

    def delta(self, text: str, last: bool = False, reasoning: str = "") -> dict[str, Any]:
        """What a piece of text, and of thinking before it, adds to the message. last: that is all of the reply."""
        if reasoning:
            return {"reasoning_content": reasoning} | (self.delta(text) if text else {})
        if self.reader is None:
            return {"content": text} if text or not last else {}
        parts = self.reader.push(text, last)
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [part.body() for part in parts if isinstance(part, CallPart)]
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})


class Exchange:
    """The replies to one request, and what the API says of them: here as chats and completions.

    asked: the body of the request; request: the chat or completion of the same replies. events: of their rows, with the
    index of the choice.
    """

    def __init__(
        self,
        asked: ReplyRequest,
        request: ChatRequest | CompletionRequest,
        identity: str,
        model: str,
        tokenizer: Any,
        choices: list[Choice],
        events: "asyncio.Queue[tuple[int, Event]]",
    ):
        self.identity, self.model, self._tokenizer = identity, model, tokenizer
        self.choices, self.events, self.asked = choices, events, asked
        self._chat, self._each = isinstance(request, ChatRequest), request.n
        self._budget = None if request.efficiency is None else request.efficiency.budget
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        self.created = int(time.time())

    async def each(self) -> AsyncIterator[tuple[Choice, Piece | None]]:
        """Every piece, taken up by its choice, and None at its end, until all have ended. Raises `ApiError` for one
        that failed."""
        while not all(choice.ended for choice in self.choices):
            index, piece = await self.events.get()
            choice = self.choices[index]
            if isinstance(piece, ApiError):
                raise piece
            choice.ended = piece is None
            if piece is not None:
                choice.text += piece.text
                choice.reasoning += piece.reasoning
                choice.tokens += piece.tokens
            yield choice, piece

    async def stream(self) -> AsyncIterator[bytes]:
        """The server-sent events of chat completions and plain ones. Raises `ApiError`."""
        async for choice, piece in self.each():
            if piece is not None:
                yield self._piece(choice, piece)
                continue
            if not choice.begun and choice.before:  # no token follows the prompt that is repeated
                yield self._piece(choice, Piece("", ()))
            body: dict[str, Any] = {"delta": choice.delta("", last=True)} if self._chat else {"text": ""}
            body |= {"index": choice.index, "finish_reason": choice.finish_reason, "logprobs": None}
            yield event(self._envelope("chat.completion.chunk", [body]))
        if self._with_usage:
            yield event(self._envelope("chat.completion.chunk", []) | {"usage": self.usage()})
        yield b"data: [DONE]\n\n"

    @staticmethod
    def named(error: ApiError) -> ApiError:
        """The error of a chat or a completion, by the names that fields have in this form."""
        return error

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream that cannot go on."""
        return event(error.body)

    def whole(self) -> dict[str, Any]:
        """The response of a request that is not streamed; all choices are complete."""
        bodies = []
        for choice in self.choices:
            body: dict[str, Any] = (
                {"message": choice.message()} if self._chat else {"text": choice.before + choice.text}
            )
            bodies.append(self._body(choice, body, choice.tokens, choice.finish_reason))
        return self._envelope("chat.completion", bodies) | {"usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens and compute of all complete choices together. `compute` is the mean over choices, weighted by their
        tokens; a prompt of several choices counts once."""
        rows = [choice.row for choice in self.choices if choice.ended]
        read, written = sum(len(row.prompt) for row in rows[:: self._each]), sum(len(row.ids) for row in rows)
        made, kept = Counter[str](), Counter[str]()
        for row in rows:
            for source, (guessed, accepted) in row.trace.guesses.items():
                made[source] += guessed
                kept[source] += accepted
        weights, joules = [max(1, len(row.ids)) for row in rows], [row.trace.joules for row in rows]
        realised = mean_terms([row.compute.realised for row in rows], weights)
        return {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "guessed_tokens": made.total(), "accepted_tokens": kept.total(),
            "completion_tokens_details": {
                "reasoning_tokens": sum(row.thought for row in rows),
                "accepted_prediction_tokens": kept["prediction"],
                "rejected_prediction_tokens": made["prediction"] - kept["prediction"],
            },
            "guesses": {source: {"guessed": made[source], "accepted": kept[source]} for source in made},
            "prompt_tokens_details": {"cached_tokens": sum(row.cached for row in rows[:: self._each])},
            "energy_joules": None if None in joules else sum(joules),
            "compute": {
                "budget": self._budget,  # as it came; None where none came, such as through a proxy that drops it
                "requested": mean_terms([row.compute.requested for row in rows], weights),
                "allowed": mean_terms([row.allowed for row in rows], weights),
                "realised": realised,
                "bytes": realised["bytes"],
                "loss_verified": any(row.compute.verified for row in rows),
                **_phases(rows),
            },
        }  # fmt: skip

    def facts(self, failed: str | None = "cancelled", arrived: bool = True) -> dict[str, Any]:
        """What the access log and traces say of the request: tokens, compute, priority, how it ended. Never text.

        failed: how those ended that did not complete; by default the client hung up. arrived: whether the tokens that
        arrived count. Tokens of a prompt of several replies count once. ``requested``, ``allowed`` (by governor and
        deadline) and ``realised`` are budgets in the units of `solm.core.budget`, as means over the replies, weighted
        by their tokens. ``saved_ms`` is what the steps saved against dense ones, where step times are measured.
        """
        choices, budgets = self.choices, [choice.row.budget for choice in self.choices]
        facts: dict[str, Any] = {"policy": budgets[0].name, "priority": budgets[0].priority}
        if arrived:
            facts["prompt_tokens"] = sum(len(choice.row.prompt) for choice in choices[:: self._each])
            written = [len(choice.row.ids if choice.ended else choice.tokens) for choice in choices]
            facts["completion_tokens"] = sum(written)
        facts["requested"] = _rounded(mean_terms([budget.resolved.terms for budget in budgets], [1] * len(budgets)))
        complete = [choice.row for choice in choices if choice.ended and arrived]
        if complete:
            usage = self.usage()
            facts["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
            facts |= {name: _rounded(usage["compute"][name]) for name in ("allowed", "realised")}
            if "ms" in facts["realised"]:
                facts["saved_ms"] = round(sum(map(_saved, complete)), 1)
        return facts | {"finish": [choice.row.reason if choice.row in complete else failed for choice in choices]}

    def _piece(self, choice: Choice, piece: Piece) -> bytes:
        """An event of a stream: more of a choice."""
        first, choice.begun = not choice.begun, True
        if self._chat:
            delta = choice.delta(piece.text, reasoning=piece.reasoning)
            body: dict[str, Any] = {"delta": delta | ({"role": "assistant"} if first else {})}
        else:
            body = {"text": (choice.before if first else "") + piece.text}
        return event(self._envelope("chat.completion.chunk", [self._body(choice, body, piece.tokens, None)]))

    def _body(
        self, choice: Choice, body: dict[str, Any], tokens: Sequence[Chosen], reason: str | None
    ) -> dict[str, Any]:
        body |= {"index": choice.index, "finish_reason": reason, "logprobs": None}
        if choice.row.logprobs is not None:
            body["logprobs"] = self._log_probabilities(choice, tokens)
        if choice.row.traced:
            body["efficiency"] = traced(tokens)
        return body

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = kind if self._chat else "text_completion"
        return {
            "id": self.identity, "object": kind, "created": self.created, "model": self.model, "choices": choices,
            "seed": self.choices[0].row.seed,
        }  # fmt: skip

    def _log_probabilities(self, choice: Choice, tokens: Sequence[Chosen]) -> dict[str, Any]:
        if self._chat:
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
        return {"token": text, "logprob": log_probability, "bytes": token_bytes(self._tokenizer, token, text)}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def traced(tokens: Sequence[Chosen]) -> dict[str, Any]:
    """What tokens cost, and which of them belong to the thinking."""
    listed = []
    for token in tokens:
        if token.spent is not None:
            listed.append(token.spent.as_dict() | ({"reasoning": True} if token.thought else {}))
            del listed[-1]["id"]
    return {"tokens": listed}


def _phases(rows: Sequence[Row]) -> dict[str, Any]:
    """What the thinking and the answer of all replies that thought requested and realised, weighted by their tokens."""
    thought, told = [row.phases for row in rows if row.thought], {}
    for name in thought[0] if thought else ():
        spent, weights = zip(*(phases[name] for phases in thought), strict=True)
        parts = {"requested": [each.requested for each in spent], "realised": [each.realised for each in spent]}
        told[name] = {part: mean_terms(terms, weights) for part, terms in parts.items()}
    return told


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %s\n\n" % to_json(content, inf_nan_mode="null")


def _saved(row: Row) -> float:
    """Milliseconds that a reply's steps saved. Its first token comes from the dense prefill."""
    spent = row.compute.realised
    return (spent["speed"] - 1) * spent["ms"] * max(0, len(row.ids) - 1)


def _rounded(terms: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in terms.items()}
