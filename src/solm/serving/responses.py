"""`/v1/responses`, the stateless part: chat completions in the form of OpenAI's Responses API."""

import json
from collections.abc import AsyncIterator
from typing import Any

from openai.types.chat import ChatCompletion

from solm.serving.answers import Choice
from solm.serving.requests import ResponsesRequest
from solm.serving.rows import Ended, Piece
from solm.serving.service import Exchange


class ResponseWriter:
    """Builds the response objects of one request, from what the chat path answers to it."""

    def __init__(self, asked: ResponsesRequest, exchange: Exchange):
        self.asked, self.exchange = asked, exchange
        self.identity = exchange.answers.identity
        self._item = self.identity.replace("resp", "msg", 1)
        self._sent = 0

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """The response of a request that has been carried out. choices: one, complete."""
        built = self.exchange.answers.whole(choices, self.exchange.echo)
        assert isinstance(built, ChatCompletion)
        (choice,) = built.choices
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        found = self._response(status, [self._message(status, choice.message.content or "")])
        if status == "incomplete":
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        assert built.usage is not None
        used = built.usage.model_dump()
        found["usage"] = {
            "input_tokens": used["prompt_tokens"], "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"], "compute": used["compute"],
        }  # fmt: skip
        if choice.model_extra and "efficiency" in choice.model_extra:
            found["efficiency"] = choice.model_extra["efficiency"]
        return found

    async def stream(self, choice: Choice) -> AsyncIterator[str]:
        """The server-sent events of a response; `choice` is filled while they come. Raises `ApiError`."""
        yield self._event("response.created", response=self._response("in_progress", []))
        yield self._event("response.in_progress", response=self._response("in_progress", []))
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", None))
        yield self._event("response.content_part.added", **place, part=_part(""))
        async for _, event in self.exchange.each():
            if isinstance(event, Piece):
                choice.add(event)
                if event.text:
                    yield self._event("response.output_text.delta", **place, delta=event.text, logprobs=[])
            elif isinstance(event, Ended):
                choice.ended = event
        done = self.whole([choice])
        yield self._event("response.output_text.done", **place, text=choice.text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(choice.text))
        yield self._event("response.output_item.done", output_index=0, item=done["output"][0])
        yield self._event(f"response.{done['status']}", response=done)

    def failed(self, error: dict[str, Any]) -> str:
        """The event that ends a stream in place of the response. error: as `ApiError.body` has it."""
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _event(self, kind: str, **content: Any) -> str:
        told = {"type": kind, **content, "sequence_number": self._sent}
        self._sent += 1
        return f"event: {kind}\ndata: {json.dumps(told)}\n\n"

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self.asked
        form = None if asked.text is None or asked.text.format is None else asked.text.format
        shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self.identity, "object": "response", "created_at": self.exchange.answers.created, "status": status,
            "model": self.exchange.answers.model, "output": output, "error": None, "incomplete_details": None,
            "usage": None, "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature, "top_p": asked.top_p, "metadata": asked.metadata or {},
            "user": asked.user, "store": False, "background": False, "previous_response_id": None,
            "truncation": "disabled", "text": {"format": shown}, "parallel_tool_calls": False,
            "tool_choice": "none", "tools": [],
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
