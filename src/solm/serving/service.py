"""Turns parsed requests into rows for the scheduler, and their events into replies."""

import asyncio
import copy
import gc
import hashlib
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json

from solm.backends.chat_template import names_of, options_of
from solm.core.errors import ContextLengthError, SolmError
from solm.runtime.guess import guess_count
from solm.runtime.language_model import LanguageModel
from solm.runtime.prompts import chat_tokens
from solm.runtime.reply import hidden_token
from solm.runtime.sampling import Sampler
from solm.runtime.thinking import ThinkingReader, hidden_marks, marks_of
from solm.serving.answers import Choice, Exchange
from solm.serving.budgets import RequestBudget, RequestBudgets
from solm.serving.constraints import CallGrammars, Constraints, offered
from solm.serving.errors import ApiError, from_validation
from solm.serving.infill import Filling
from solm.serving.keys import ApiKey
from solm.serving.metrics import Metrics, VllmNames
from solm.serving.scheduler import Event, Piece, Row, Scheduler
from solm.serving.schema import ChatRequest, CompletionRequest, Efficiency, Message, ReplyRequest, Tool, text_of
from solm.serving.settings import ServeSettings
from solm.serving.tools import FORMS, CallReader, form_of

_LOG = logging.getLogger("solm.serving")
_COMPLETION_TOKENS = 16
"""Longest reply of a plain completion that does not say, as OpenAI's API has it."""
_NO_TOOLS = "this model's chat template has no tools"
_COLDEST = 1e-3
"""Temperature up to which a reply is greedy: logits divided by less overflow."""


class Service:
    """One model behind the API. It has a tokenizer of its own, because tokenizers cannot be shared by threads.

    thread: the thread that decodes, in which the model was loaded (see `Scheduler`).
    aliases: further names that requests may call the model. keys: the API keys; none: no key is required.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: ServeSettings,
        name: str,
        thread: Executor | None = None,
        aliases: Sequence[str] = (),
        keys: Sequence[ApiKey] = (),
    ):
        if lm.tokenizer is None:
            raise SolmError("serving needs a tokenizer")
        self.lm, self.settings, self.name, self.keys = lm, settings, name, keys
        self._names = {name, *aliases}
        self.context = min(lm.context or 1 << 20, settings.max_model_len or 1 << 20)
        self.metrics = Metrics()
        self.metrics.registry.register(VllmNames(self.metrics, name, lm.sparsity.page_size, self._most_pages))
        self.budgets = RequestBudgets(lm, settings)
        self.scheduler = Scheduler(lm, settings, Metrics(), thread)  # until the server is warm
        self.constraints, self.ready, self._failed = Constraints(lm), False, False
        self._tokenizer, self._lock = copy.deepcopy(lm.tokenizer), threading.Lock()
        template = self._tokenizer.chat_template
        self._has_tools, form = isinstance(template, str) and "tools" in names_of(template), form_of(template)
        self._calls = None if form is None else CallGrammars(form, hidden_token(self._tokenizer, form.begins))
        self.filling, marks = Filling.of(self._tokenizer), marks_of(template)
        self._hidden = [] if marks is None else hidden_marks(self._tokenizer, marks)

    def _most_pages(self, page_bytes: float) -> float:
        """Pages of keys and values that rows of the whole context and the prefix cache would fill."""
        per_row = -(-self.context // self.lm.sparsity.page_size)
        return self.settings.max_rows * per_row + self.settings.prefix_mb * 1e6 / page_bytes

    async def start(self) -> None:
        """Begin to decode, and warm up. Where that fails, the log and `state` say so, and `ready` stays false."""
        self.scheduler.start(asyncio.get_running_loop())
        try:
            await self._warm_up()
        except Exception as error:
            _LOG.error("the warm-up failed; this server has to be started again", exc_info=error)
            self._failed = True
            return
        # What is there by now stays: a full collection would walk through all of it, a quarter of a second in mid-step.
        gc.collect()
        gc.freeze()
        self.scheduler.count_in(self.metrics)
        self.ready = True

    async def _warm_up(self) -> None:
        """Decode a few tokens under every policy, so that the first request does not wait for what is built once.
        Raises `SolmError` where that cannot be done."""
        done = asyncio.Queue[Event]()
        length = self.lm.sparsity.always_read + 2
        ids = np.arange(length) % self.lm.shapes.vocabulary
        for name, policy in self.budgets.policies.items() if length + 4 <= self.context else ():
            budget = self.lm.budgets(policy).resolve(self.budgets.floor(policy, length), length)
            emit, sampler = partial(self.scheduler.post, done), Sampler.of(self.lm, ids[None], 0, {})
            self.scheduler.submit([Row(self.lm, ids, 4, RequestBudget(name, policy, budget), emit, sampler)])
            while isinstance(event := await done.get(), Piece):
                pass
            if event is not None and event.code != "timeout":  # a limit for warm replies may be short
                raise SolmError(f"policy {name}: {event.message}")

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``stopping``, or ``failed`` where the warm-up failed or the decoding thread did."""
        if self._failed or self.scheduler.failed:
            return "failed"
        if self.scheduler.stopping:
            return "stopping"
        return "ready" if self.ready else "starting"

    def facts(self) -> dict[str, Any]:
        """What `/v1/models` says of the model and how it is served, beside its budgets."""
        template = self._tokenizer.chat_template
        known, marks = template if isinstance(template, str) else "", marks_of(template)
        return {
            "version": version("solm"), "backend": self.lm.backend.name, "vocabulary": self.lm.shapes.vocabulary,
            "max_rows": self.settings.max_rows, "chat_template": template,
            "template_variables": sorted(options_of(known)),
            "thinks": None if marks is None else marks._asdict(), "fills_gaps": self.filling is not None,
            "tools": self._calls.form.name if self._has_tools and self._calls is not None else None,
        }  # fmt: skip

    def check_name(self, name: str) -> None:
        """Raise `ApiError` unless the model is called `name`."""
        if name not in self._names:
            raise ApiError(404, f"model {name!r} is not served here; use {self.name!r}", "model", "not_found")

    def tokens(
        self, prompt: str | list[Message], tools: Sequence[Tool] = (), told: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a text, or of messages through the chat template, which tells the model of `tools`, and is told
        other variables."""
        with self._lock:
            if isinstance(prompt, str):
                return list(self._tokenizer.encode(prompt))
            if not self._tokenizer.chat_template:
                raise SolmError("this model has no chat template; use /v1/completions")
            if any(message.tool_calls for message in prompt) and not self._has_tools:
                raise ApiError(400, f"messages have tool_calls, and {_NO_TOOLS}", "messages")
            messages = template_messages(prompt, None if self._calls is None else self._calls.form.identity)
            offers = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
            return chat_tokens(self._tokenizer, messages, offers, told)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, with special ones. Raises `ApiError` for one that the model lacks."""
        self._check_token(max(ids), "tokens")
        with self._lock:
            return str(self._tokenizer.decode(list(ids)))

    def open(self, asked: ReplyRequest, identity: str, key: ApiKey, answer: type[Exchange] = Exchange) -> Exchange:
        """Queue the replies to a request under an API key. answer: what answers it.

        Raises `SolmError` and `ApiError` for a request that cannot be carried out.
        """
        try:
            request = asked.plain(self.name)
        except ValidationError as error:  # more as a chat than as a response, such as messages with instructions
            raise from_validation(error) from error
        self.check_name(request.model)
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options need stream to be true", "stream_options")
        tools, calls, echo = list[Tool](), None, False
        if isinstance(request, ChatRequest):
            wanted, logprobs = _chat_limits(request)
            tools = offered(request)
            if tools and self._tokenizer.chat_template:
                calls = self._calls
                if not self._has_tools or calls is None:
                    forms = ", ".join(sorted(form.name for form in FORMS))
                    unknown = f"this model calls tools in a form that is not known here; known are those of {forms}"
                    message = unknown if self._has_tools else _NO_TOOLS
                    raise ApiError(400, message, "tools", "unsupported_parameter")
            prompts = [self.tokens(request.messages, tools, request.told)]
        else:
            prompts, echo, logprobs = self._prompts(request), request.echo, request.logprobs
            wanted = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
            if wanted == 0 and not echo:
                raise ApiError(400, "max_tokens 0 needs echo", "max_tokens")
        rows, most = len(prompts) * request.n, self.settings.max_rows + self.settings.max_waiting
        if rows > most:
            raise ApiError(400, f"{rows} replies in one request; this server holds at most {most} in all", "n")
        self.scheduler.check_room(rows)  # before grammars are compiled
        constraint, sampling = self.constraints.of(request, tools, calls), self._sampling(request)
        efficiency, deadline = request.efficiency or Efficiency(), None
        if efficiency.deadline_ms is not None:
            deadline = self.scheduler.clock() + efficiency.deadline_ms / 1000
        seed = secrets.randbits(53) if request.seed is None else request.seed
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        choices, predicted = list[Choice](), list[int]()
        if isinstance(request, ChatRequest) and request.prediction is not None:
            with self._lock:
                predicted = self._tokenizer.encode(text_of(request.prediction.content), add_special_tokens=False)
        shown = self._hidden if isinstance(request, ChatRequest) else []
        shown = shown if calls is None or calls.mark is None else [*shown, calls.mark]

        def emit(index: int, event: Event) -> None:
            self.scheduler.post(events, (index, event))

        for prompt in prompts:
            longest, ids = self._longest(len(prompt), wanted), np.array(prompt, dtype=np.int64)
            thinking = ThinkingReader.of(self._tokenizer, ids) if isinstance(request, ChatRequest) else None
            budget = self.budgets.resolve(efficiency, len(ids) + longest // 2, key, thinking is not None)
            before = str(self._tokenizer.decode(prompt)) if echo else ""
            for _ in range(request.n):
                own, reader, index = (seed + len(choices)) % (1 << 63), None, len(choices)
                sampler = Sampler.of(self.lm, ids[None], own, sampling, constraint and constraint.copy())
                row = Row(
                    self.lm, ids, longest, budget, partial(emit, index), sampler, shown=shown, stops=request.stops
                )
                row.seed, row.deadline, row.traced, row.predicted = own, deadline, efficiency.trace, predicted
                row.guess = guess_count(efficiency.guess, self.lm.backend.exact_passes)
                if logprobs is not None:
                    row.logprobs, row.echoed, row.largest = logprobs, echo, 0
                if thinking is not None:
                    row.think(copy.copy(thinking))
                if calls is not None:
                    reader = CallReader(calls.form, {tool.function.name for tool in tools})
                choices.append(Choice(index, row, before, reader))
        self.scheduler.submit([choice.row for choice in choices])
        return answer(asked, request, identity, self.name, self._tokenizer, choices, events)

    def close(self, exchange: Exchange) -> None:
        """Cancel the replies that have not ended."""
        for choice in exchange.choices:
            if not choice.ended:
                self.scheduler.cancel(choice.row)

    def _prompts(self, request: CompletionRequest) -> list[list[int]]:
        prompt = request.prompt
        if request.suffix is not None:
            if self.filling is None:
                raise ApiError(400, "this model has no tokens by which it could be asked to fill a gap", "suffix")
            if not isinstance(prompt, str) or request.echo:
                raise ApiError(400, "suffix goes with one text as the prompt, and without echo", "suffix")
            with self._lock:
                plain = partial(self._tokenizer.encode, add_special_tokens=False)
                before = list(self._tokenizer.encode(""))  # such as a token that begins a text
                return [before + self.filling.prompt(plain, prompt, request.suffix, request._files)]
        texts: Any = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        prompts = [self.tokens(text) if isinstance(text, str) else list(text) for text in texts]
        for ids in prompts:
            if not ids:
                raise ApiError(400, "the prompt is empty", "prompt")
            self._check_token(max(ids), "prompt")
        return prompts

    def _check_token(self, token: int, field: str) -> None:
        vocabulary = self.lm.shapes.vocabulary
        if token >= vocabulary:
            raise ApiError(400, f"token {token} is not among the model's {vocabulary}", field)

    def _longest(self, prompt: int, wanted: int | None) -> int:
        """The most tokens of a reply to a prompt of so many. Raises `ContextLengthError`."""
        room = self.context - prompt
        if (room < 1 and wanted != 0) or room < (wanted or 0):
            more = "" if wanted is None else f" and {wanted} new ones"
            whose = "this model's context" if self.context == self.lm.context else "this server's --max-model-len"
            raise ContextLengthError(f"{prompt} tokens of prompt{more} exceed {whose} of {self.context}")
        return min(room, self.settings.default_max_tokens) if wanted is None else wanted

    def _sampling(self, request: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """How tokens are chosen, in transformers' words."""
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > _COLDEST:
            sampling = {
                "do_sample": True, "temperature": request.temperature, "top_p": request.top_p,
                "top_k": max(0, request.top_k or 0), "min_p": request.min_p or 0.0,
            }  # fmt: skip
        sampling |= {"presence_penalty": request.presence_penalty, "frequency_penalty": request.frequency_penalty}
        if request.repetition_penalty is not None:
            sampling["repetition_penalty"] = request.repetition_penalty
        if isinstance(request, CompletionRequest) and request.suffix is not None and self.filling is not None:
            own = self.lm.generation_options.get("eos_token_id")
            ends = own if isinstance(own, list | tuple) else [] if own is None else [own]
            sampling["eos_token_id"] = [*ends, *self.filling.ends]
        if request.ignore_eos:
            sampling["eos_token_id"] = [-1]  # no token
        if request.logit_bias:
            biases = {int(token): bias for token, bias in request.logit_bias.items()}
            self._check_token(max(biases), "logit_bias")
            sampling["sequence_bias"] = {(token,): bias for token, bias in biases.items()}
        return sampling


def _chat_limits(request: ChatRequest) -> tuple[int | None, int | None]:
    """The most tokens of a chat's reply, and how many log-probabilities it reports; None where it leaves that open."""
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "give either max_tokens or max_completion_tokens", "max_completion_tokens")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs need logprobs to be true", "top_logprobs")
    if request.max_tokens == 0:
        raise ApiError(400, "max_tokens must be at least 1", "max_tokens")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return request.max_completion_tokens or request.max_tokens, logprobs


def template_messages(messages: Sequence[Message], length: int | None = None) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. length: letters and digits that the id of a call has to have, None: any;
    those of another server or form are replaced. Raises `ApiError` where fields do not go with a role."""

    def named(identity: str) -> str:
        plain = len(identity) == length and identity.isalnum() and identity.isascii()
        return identity if plain or length is None else hashlib.sha256(identity.encode()).hexdigest()[:length]

    shown = []
    for number, message in enumerate(messages):
        place, is_tool = f"messages.{number}", message.role == "tool"
        for field, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(message, field) is not None and message.role != role:
                wrong = f"{place}.{field}: only messages with the role {role} have it"
                raise ApiError(400, wrong, f"{place}.{field}")
        needed = {"tool_call_id": is_tool, "content": message.tool_calls is None}
        for field in (name for name, is_needed in needed.items() if is_needed and getattr(message, name) is None):
            raise ApiError(400, f"{place}.{field} is missing", f"{place}.{field}", "missing_required_parameter")
        told = message.model_dump(exclude_none=True, exclude={"refusal"} if is_tool else {"refusal", "name"})
        told["role"] = "system" if message.role == "developer" else message.role
        told["content"] = text_of(message.content)
        for call in told.get("tool_calls", ()):
            call["id"] = named(call["id"])
            call["function"]["arguments"] = from_json(call["function"]["arguments"])
        if is_tool:
            told["tool_call_id"] = named(told["tool_call_id"])
        shown.append(told)
    return shown
