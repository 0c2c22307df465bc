"""`/v1/responses`, the stateless part: chat completions in the form of OpenAI's Responses API."""

import json
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from typing import Any

from solm.serving.answers import Choice
from solm.serving.calls import CallPart
from solm.serving.response_requests import ResponsesRequest
from solm.serving.rows import Ended, Piece
from solm.serving.service import Exchange


class ResponseWriter:
    """Builds the response objects of one request, and the events by which they grow. What a reply says becomes items: a
    message with its text, and one item per call of a tool."""

    def __init__(self, asked: ResponsesRequest, exchange: Exchange):
        self.asked, self.exchange = asked, exchange
        self.identity = exchange.answers.identity
        self._sent = 0
        self._items: list[dict[str, Any]] = []
        reader = exchange.answers.reader
        self._reader = None if reader is None else reader()

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The response of a request that has been carried out. choices: one, complete."""
        (choice,) = choices
        # The items are what counts here; nobody gets the events.
        for _ in chain(self._said(choice.text), self._ended()):
            continue
        return self._done(choice)

    async def stream(self, choice: Choice) -> AsyncIterator[str]:
        """The server-sent events of a response; `choice` is filled while they come. Raises `ApiError`."""
        yield self._event("response.created", response=self._response("in_progress", []))
        yield self._event("response.in_progress", response=self._response("in_progress", []))
        if self._reader is None:
            for event in self._begin_message():
                yield event
        async for _, told in self.exchange.each():
            if isinstance(told, Piece):
                choice.add(told)
                for event in self._said(told.text):
                    yield event
            elif isinstance(told, Ended):
                choice.ended = told
        for event in self._ended():
            yield event
        done = self._done(choice)
        for event in self._close(done["status"]):
            yield event
        yield self._event(f"response.{done['status']}", response=done)

    def failed(self, error: dict[str, Any]) -> str:
        """The event that ends a stream in place of the response. error: as `ApiError.body` has it."""
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _said(self, text: str) -> Iterator[str]:
        """What more text of the reply makes of items, and the events of that."""
        yield from self._parts([text] if self._reader is None else self._reader.push(text))

    def _ended(self) -> Iterator[str]:
        """The same of the end of the reply. A response has at least one item."""
        yield from self._parts([] if self._reader is None else self._reader.finish())
        if not self._items:
            yield from self._begin_message()

    def _parts(self, parts: list[str | CallPart]) -> Iterator[str]:
        for part in parts:
            if isinstance(part, CallPart):
                yield from self._call(part)
            elif part:
                yield from self._text(part)

    def _text(self, text: str) -> Iterator[str]:
        if not self._items or self._items[-1]["type"] != "message":
            yield from self._close("completed")
            yield from self._begin_message()
        (part,) = self._items[-1]["content"]
        part["text"] += text
        yield self._event("response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=[])

    def _begin_message(self) -> Iterator[str]:
        message = {"type": "message", "id": self._name("msg"), "status": "in_progress", "role": "assistant"}
        self._items.append(message | {"content": []})
        yield self._event("response.output_item.added", **self._numbered(), item=self._items[-1])
        self._items[-1]["content"].append(_part(""))
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=_part(""))

    def _call(self, part: CallPart) -> Iterator[str]:
        if part.identity is not None:
            yield from self._close("completed")
            call = {"type": "function_call", "id": self._name("fc"), "call_id": part.identity, "name": part.name}
            self._items.append(call | {"arguments": "", "status": "in_progress"})
            yield self._event("response.output_item.added", **self._numbered(), item=self._items[-1])
        if part.arguments:
            self._items[-1]["arguments"] += part.arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=part.arguments)

    def _close(self, status: str) -> Iterator[str]:
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
            told = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **place, **told)
        yield self._event("response.output_item.done", **self._numbered(), item=item)

    def _numbered(self) -> dict[str, Any]:
        return {"output_index": len(self._items) - 1}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], **self._numbered()}

    def _name(self, kind: str) -> str:
        """The identity of the next item."""
        number = len(self._items)
        return self.identity.replace("resp", kind, 1) + (f"_{number}" if number else "")

    def _event(self, kind: str, **content: Any) -> str:
        told = {"type": kind, **content, "sequence_number": self._sent}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(told)}\n\n"

    def _done(self, choice: Choice) -> dict[str, Any]:
        """The response at its end; the last item may still be in progress, and is then shown as it will be."""
        assert choice.ended is not None
        status = "incomplete" if choice.ended.reason == "length" else "completed"
        *before, last = self._items
        before = [item | {"status": "completed"} for item in before]
        found = self._response(status, [*before, last | {"status": status}])
        if status == "incomplete":
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        used = self.exchange.answers.usage([choice]).model_dump()
        found["usage"] = {
            "input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"], "compute": used["compute"],
        }  # fmt: skip
        if self.exchange.answers.trace:
            found["efficiency"] = self.exchange.answers.traced(choice.said)
        return found

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self.asked
        form = None if asked.text is None or asked.text.format is None else asked.text.format
        shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        chosen = asked.tool_choice if isinstance(asked.tool_choice, str | None) else asked.tool_choice.model_dump()
        return {
            "id": self.identity, "object": "response", "created_at": self.exchange.answers.created, "status": status,
            "model": self.exchange.answers.model, "output": output, "error": None, "incomplete_details": None,
            "usage": None, "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature, "top_p": asked.top_p, "metadata": asked.metadata or {},
            "user": asked.user, "store": False, "background": False, "previous_response_id": None,
            "truncation": "disabled", "text": {"format": shown},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "tool_choice": chosen or "auto",
            "tools": [tool.model_dump() for tool in asked.tools or []],
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
