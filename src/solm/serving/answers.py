"""Requests in progress: replies as they arrive, and the responses of the API that they become."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pydantic_core import to_json

from solm.backends.tokenizer import token_bytes
from solm.core.budget import mean_terms
from solm.serving.errors import ApiError
from solm.serving.scheduler import Chosen, Ended, Event, Failed, Job, Piece
from solm.serving.schema import ChatRequest, CompletionRequest
from solm.serving.tools import CallPart, CallReader

_STATUS = {"timeout": 504, "shutting_down": 503, "invalid_request_error": 400}
"""By kind of a reply that could not be completed."""


@dataclass
class Choice:
    """One reply as far as its events have arrived: text, thinking, tokens and, once it is complete, its end.

    before: the text of a prompt that is repeated. reader: of replies that may call tools.
    """

    index: int
    job: Job
    before: str = ""
    reader: CallReader | None = None
    text: str = ""
    reasoning: str = ""
    tokens: list[Chosen] = field(default_factory=list)
    ended: Ended | None = None
    begun: bool = False
    """Whether a piece of it was sent."""
    offset: int = 0
    """Characters of its tokens so far, for `text_offset`."""

    @property
    def finish_reason(self) -> str:
        """As the API has it; the reply is complete."""
        assert self.ended is not None
        called = self.ended.reason == "stop" and self.reader is not None and self.reader.calls
        return "tool_calls" if called else self.ended.reason

    def message(self) -> dict[str, Any]:
        """Content and calls of a reply that is complete."""
        content, calls = self._read(self.text, last=True)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.job.thinking is not None:
            message["reasoning_content"] = self.reasoning or None
        if calls:
            for call in calls:
                del call["index"]
            message |= {"content": content or None, "tool_calls": calls}
        return message

    def delta(self, text: str, last: bool = False, reasoning: str = "") -> dict[str, Any]:
        """What a piece of text, and of thinking before it, adds to the message. last: that is all of the reply."""
        if reasoning:
            return {"reasoning_content": reasoning} | (self.delta(text) if text else {})
        content, calls = self._read(text, last)
        if self.reader is None and not last:
            return {"content": content}
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})

    def parts(self, text: str, last: bool) -> list[str | CallPart]:
        """More text of the reply as pieces of content and of calls. last: that is all of it."""
        if self.reader is None:
            return [text]
        return [*self.reader.push(text), *(self.reader.finish() if last else ())]

    def _read(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """The content of more text of the reply, and its calls as deltas have them."""
        parts = self.parts(text, last)
        content = "".join(part for part in parts if isinstance(part, str))
        return content, [part.body() for part in parts if isinstance(part, CallPart)]


class Exchange:
    """The replies to one request, and what the API says of them.

    events: of their jobs, with the index of the choice.
    """

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        identity: str,
        model: str,
        tokenizer: Any,
        choices: list[Choice],
        events: "asyncio.Queue[tuple[int, Event]]",
    ):
        self.identity, self.model, self._tokenizer = identity, model, tokenizer
        self.choices, self._events = choices, events
        self._chat, self._each = isinstance(request, ChatRequest), request.n
        self._budget = None if request.efficiency is None else request.efficiency.budget
        self._with_usage = request.stream_options is not None and request.stream_options.include_usage
        self.created = int(time.time())

    async def each(self) -> AsyncIterator[tuple[Choice, Piece | Ended]]:
        """Every event, taken up by its choice, until all have ended. Raises `ApiError` for one that failed."""
        while any(choice.ended is None for choice in self.choices):
            index, event = await self._events.get()
            choice = self.choices[index]
            if isinstance(event, Failed):
                raise ApiError(_STATUS.get(event.kind, 500), event.message, event.param, event.kind)
            if isinstance(event, Ended):
                choice.ended = event
            else:
                choice.text += event.text
                choice.reasoning += event.reasoning
                choice.tokens += event.tokens
            yield choice, event

    async def stream(self) -> AsyncIterator[bytes]:
        """The server-sent events of chat completions and plain ones. Raises `ApiError`."""
        async for choice, event in self.each():
            if isinstance(event, Piece):
                yield self._piece(choice, event)
                continue
            if not choice.begun and choice.before:  # no token follows the prompt that is repeated
                yield self._piece(choice, Piece("", ()))
            body: dict[str, Any] = {"delta": choice.delta("", last=True)} if self._chat else {"text": ""}
            body |= {"index": choice.index, "finish_reason": choice.finish_reason, "logprobs": None}
            yield _event(self._envelope("chat.completion.chunk", [body]))
        if self._with_usage:
            yield _event(self._envelope("chat.completion.chunk", []) | {"usage": self.usage()})
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> bytes:
        """The event that ends a stream that cannot go on."""
        return _event(error.body)

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
        ends = [choice.ended for choice in self.choices if choice.ended is not None]
        written, weights = sum(ended.tokens for ended in ends), [max(1, ended.tokens) for ended in ends]
        realised = mean_terms([ended.compute.realised for ended in ends], weights)
        read = sum(ended.prompt_tokens for ended in ends[:: self._each])
        guesses: dict[str, list[int]] = {}
        for source, counts in (each for ended in ends for each in ended.guesses.items()):
            guesses[source] = [sum(pair) for pair in zip(counts, guesses.get(source, [0, 0]), strict=True)]
        predicted, joules = guesses.get("prediction", [0, 0]), [ended.joules for ended in ends]
        return {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "guessed_tokens": sum(made for made, _ in guesses.values()),
            "accepted_tokens": sum(kept for _, kept in guesses.values()),
            "completion_tokens_details": {
                "reasoning_tokens": sum(ended.reasoning_tokens for ended in ends),
                "accepted_prediction_tokens": predicted[1],
                "rejected_prediction_tokens": predicted[0] - predicted[1],
            },
            "guesses": {source: {"guessed": made, "accepted": kept} for source, (made, kept) in guesses.items()},
            "prompt_tokens_details": {"cached_tokens": sum(ended.cached_tokens for ended in ends[:: self._each])},
            "energy_joules": None if None in joules else sum(joules),
            "compute": {
                "budget": self._budget,  # as it came; None where none came, such as through a proxy that drops it
                "requested": mean_terms([ended.compute.requested for ended in ends], weights),
                "allowed": mean_terms([ended.allowed for ended in ends], weights),
                "realised": realised,
                "bytes": realised["bytes"],
                "loss_verified": any(ended.compute.verified for ended in ends),
                **{
                    name: {"requested": _phase(ends, name, "requested"), "realised": _phase(ends, name, "realised")}
                    for name in ("reasoning", "answer") if any(ended.phases for ended in ends)
                },
            },
        }  # fmt: skip

    def facts(self, failed: str | None = "cancelled", arrived: bool = True) -> dict[str, Any]:
        """What the access log and traces say of the request: tokens, compute, priority, how it ended. Never text.

        failed: how those ended that did not complete; by default the client hung up. arrived: whether the tokens that
        arrived count. Tokens of a prompt of several replies count once. ``requested``, ``allowed`` (by governor and
        deadline) and ``realised`` are budgets in the units of `solm.core.budget`, as means over the replies, weighted
        by their tokens. ``saved_ms`` is what the steps saved against dense ones, where step times are measured.
        """
        choices, budgets = self.choices, [choice.job.budget for choice in self.choices]
        facts: dict[str, Any] = {"policy": budgets[0].name, "priority": budgets[0].priority}
        if arrived:
            facts["prompt_tokens"] = sum(len(choice.job.ids) for choice in choices[:: self._each])
            written = [len(choice.tokens) if choice.ended is None else choice.ended.tokens for choice in choices]
            facts["completion_tokens"] = sum(written)
        facts["requested"] = _rounded(mean_terms([budget.resolved.terms for budget in budgets], [1] * len(budgets)))
        ends = [choice.ended if arrived else None for choice in choices]
        complete = [ended for ended in ends if ended is not None]
        if complete:
            usage = self.usage()
            facts["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
            facts |= {name: _rounded(usage["compute"][name]) for name in ("allowed", "realised")}
            if "ms" in facts["realised"]:
                facts["saved_ms"] = round(sum(map(_saved, complete)), 1)
        return facts | {"finish": [failed if ended is None else ended.reason for ended in ends]}

    def _piece(self, choice: Choice, piece: Piece) -> bytes:
        """An event of a stream: more of a choice."""
        first, choice.begun = not choice.begun, True
        if self._chat:
            delta = choice.delta(piece.text, reasoning=piece.reasoning)
            body: dict[str, Any] = {"delta": delta | ({"role": "assistant"} if first else {})}
        else:
            body = {"text": (choice.before if first else "") + piece.text}
        return _event(self._envelope("chat.completion.chunk", [self._body(choice, body, piece.tokens, None)]))

    def _body(
        self, choice: Choice, body: dict[str, Any], tokens: Sequence[Chosen], reason: str | None
    ) -> dict[str, Any]:
        body |= {"index": choice.index, "finish_reason": reason, "logprobs": None}
        if choice.job.logprobs is not None:
            body["logprobs"] = self._log_probabilities(choice, tokens)
        if choice.job.trace:
            body["efficiency"] = traced(tokens)
        return body

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = kind if self._chat else "text_completion"
        return {
            "id": self.identity, "object": kind, "created": self.created, "model": self.model, "choices": choices,
            "seed": self.choices[0].job.seed,
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


def _phase(ends: Sequence[Ended], name: str, part: str) -> dict[str, float]:
    """What the phase `name` of all replies that thought requested or realised, weighted by the tokens of it."""
    thought = [ended for ended in ends if ended.phases]
    weights = [ended.reasoning_tokens if name == "reasoning" else ended.tokens for ended in thought]
    return mean_terms([getattr(ended.phases[name], part) for ended in thought], weights)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % to_json(content, inf_nan_mode="null")


def _saved(ended: Ended) -> float:
    """Milliseconds that a reply's steps saved. Its first token comes from the dense prefill."""
    spent = ended.compute.realised
    return (spent["speed"] - 1) * spent["ms"] * max(0, ended.tokens - 1)


def _rounded(terms: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in terms.items()}
