"""Turns parsed requests into jobs for the scheduler, and their events into responses."""

import asyncio
import copy
import gc
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from solm.core.actions import ActionSpace
from solm.core.errors import ContextLengthError, SolmError
from solm.runtime.grammars import Constraint
from solm.runtime.language_model import LanguageModel
from solm.runtime.prompts import chat_tokens
from solm.serving.answers import Answers, Choice
from solm.serving.call_forms import checked_form, form_for, hidden_marks
from solm.serving.call_grammars import CallGrammars
from solm.serving.calls import CallReader
from solm.serving.constraints import Constraints, offered
from solm.serving.conversation import template_messages, template_tools
from solm.serving.dial import Dial, Order
from solm.serving.failures import ApiError, from_row
from solm.serving.keys import KeyRing
from solm.serving.metrics import Metrics
from solm.serving.requests import ChatRequest, CompletionRequest, Message, Prompt
from solm.serving.rows import Event, Failed, Job, Piece
from solm.serving.scheduler import Scheduler
from solm.serving.settings import ServeSettings
from solm.serving.structure import Tool
from solm.serving.vllm_names import VllmNames

_LOG = logging.getLogger("solm.serving")
_COMPLETION_TOKENS = 16
"""Longest reply of a plain completion that does not say, as OpenAI's API has it."""
_COLDEST = 1e-3
"""Temperature up to which a reply is greedy: logits divided by less overflow."""


@dataclass
class Exchange:
    """A request in progress: its jobs, the queue of their events, what builds the response, and which jobs ended."""

    jobs: list[Job]
    events: "asyncio.Queue[tuple[int, Event]]"
    answers: Answers
    echo: list[str]
    ended: set[int] = field(default_factory=set)

    async def each(self) -> AsyncIterator[tuple[int, Event]]:
        """Every event until all jobs have ended. Raises `ApiError` for one that failed."""
        while len(self.ended) < len(self.jobs):
            index, event = await self.events.get()
            self.ended |= set() if isinstance(event, Piece) else {index}
            if isinstance(event, Failed):
                raise from_row(event)
            yield index, event


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
        space: ActionSpace | None = None,
        thread: Executor | None = None,
        aliases: Sequence[str] = (),
        keys: KeyRing | None = None,
    ):
        if lm.tokenizer is None:
            raise SolmError("serving needs a tokenizer")
        self.lm, self.settings, self.name = lm, settings, name
        self._names = {name, *aliases}
        self.keys = KeyRing() if keys is None else keys
        self.context = min(lm.context or 1 << 20, settings.max_model_len or 1 << 20)
        self.metrics = Metrics()
        self.metrics.registry.register(VllmNames(self.metrics, name, self._most_pages))
        self.dial = Dial(lm, space, settings.slo_floor, settings.slo_tpot_ms is not None, settings.priority_floors)
        self.scheduler = Scheduler(lm, settings, self.metrics, thread)
        self.constraints, self.ready, self._failed = Constraints(lm), False, False
        self._tokenizer, self._lock = copy.deepcopy(lm.tokenizer), threading.Lock()

    def _most_pages(self, page_bytes: float) -> float:
        """Pages of keys and values that rows of the whole context and the prefix cache would fill."""
        per_row = -(-self.context // self.lm.sparsity.page_size)
        return self.settings.max_rows * per_row + self.settings.prefix_mb * 1e6 / page_bytes

    async def start(self) -> None:
        """Begin to decode, and warm up. Where that fails, the log and `state` say so, and `ready` stays false."""
        self.scheduler.start()
        try:
            await self._warm_up()
        except Exception as error:
            _LOG.error("the warm-up failed; this server has to be started again", exc_info=error)
            self._failed = True
            return
        # What is there by now stays: a full collection would walk through all of it, a quarter of a second in mid-step.
        gc.collect()
        gc.freeze()
        self.ready = True

    async def _warm_up(self) -> None:
        """Decode a few tokens under every policy, so that the first request does not wait for what is built once.
        Raises `SolmError` where that cannot be done."""
        loop, done = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(done.put_nowait, event)

        length = self.lm.sparsity.always_read + 2
        ids = np.arange(length) % self.lm.shapes.vocabulary
        for name, policy in self.dial.policies.items() if length + 4 <= self.context else ():
            budget = self.lm.budgets(policy).resolve(self.dial.floor(None, length, policy), length)
            self.scheduler.submit([Job(ids, 4, Order(name, policy, budget), emit, counted=False)])
            while isinstance(event := await done.get(), Piece):
                pass
            if isinstance(event, Failed) and event.kind != "timeout":  # a limit for warm replies may be short
                raise SolmError(f"policy {name}: {event.message}")

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``stopping``, or ``failed`` where the warm-up failed or the decoding thread did."""
        if self._failed or self.scheduler.failed:
            return "failed"
        if self.scheduler.stopping:
            return "stopping"
        return "ready" if self.ready else "starting"

    def check_name(self, name: str) -> None:
        """Raise `ApiError` unless the model is called `name`."""
        if name not in self._names:
            raise ApiError(404, f"model {name!r} is not served here; use {self.name!r}", "model", "not_found")

    def tokens(self, prompt: str | list[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a text, or of messages through the chat template, which tells the model of `tools`."""
        with self._lock:
            if isinstance(prompt, str):
                return list(self._tokenizer.encode(prompt))
            if not self._tokenizer.chat_template:
                raise SolmError("this model has no chat template; use /v1/completions")
            form = form_for(self._tokenizer.chat_template, prompt)
            identity = None if form is None else form.identity
            return chat_tokens(self._tokenizer, template_messages(prompt, identity), template_tools(tools))

    def _calls(self, tools: Sequence[Tool]) -> CallGrammars | None:
        """How the model calls tools; None where there are none. Raises `ApiError` where it cannot."""
        if not tools or not self._tokenizer.chat_template:
            return None
        form = checked_form(self._tokenizer.chat_template)
        return CallGrammars(form, hidden_marks(form, self._tokenizer))

    def open(
        self,
        request: ChatRequest | CompletionRequest,
        identity: str,
        loop: asyncio.AbstractEventLoop,
        key: str = "",
    ) -> Exchange:
        """Queue the jobs of a request under the API key named `key`. Their events arrive on `loop`.

        Raises `SolmError` and `ApiError` for a request that cannot be carried out.
        """
        self.check_name(request.model)
        tools: Sequence[Tool] = ()
        calls: CallGrammars | None = None
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options need stream to be true", "stream_options")
        if isinstance(request, ChatRequest):
            if request.max_tokens is not None and request.max_completion_tokens is not None:
                raise ApiError(400, "give either max_tokens or max_completion_tokens", "max_completion_tokens")
            tools = offered(request)
            calls = self._calls(tools)
            prompts, echo, logprobs = [self.tokens(request.messages, tools)], False, None
            wanted = request.max_completion_tokens or request.max_tokens
            if request.top_logprobs is not None and not request.logprobs:
                raise ApiError(400, "top_logprobs need logprobs to be true", "top_logprobs")
            if wanted == 0 or request.max_tokens == 0:
                raise ApiError(400, "max_tokens must be at least 1", "max_tokens")
            if request.logprobs:
                logprobs = request.top_logprobs or 0
        else:
            prompts, echo, logprobs = self._prompts(request.prompt), request.echo, request.logprobs
            wanted = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
            if wanted == 0 and not echo:
                raise ApiError(400, "max_tokens 0 needs echo", "max_tokens")
        rows, most = len(prompts) * request.n, self.settings.max_rows + self.settings.max_waiting
        if rows > most:
            raise ApiError(400, f"{rows} replies in one request; this server holds at most {most} in all", "n")
        self.scheduler.check_room(rows)  # before grammars are compiled
        constraint = self.constraints.of(request, tools, calls)
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        jobs: list[Job] = []
        for ids in prompts:
            longest = self._longest(len(ids), wanted)
            order = self.dial.order(request.efficiency, len(ids) + longest // 2, self.keys.named(key))
            for _ in range(request.n):
                index = len(jobs)

                def emit(event: Event, index: int = index) -> None:
                    self.scheduler.outbox.put(loop, events, (index, event))

                jobs.append(self._job(request, ids, longest, order, emit, index, logprobs, echo, constraint))
        trace = request.efficiency is not None and request.efficiency.trace
        reader = None
        if calls is not None:
            for job in jobs:
                job.shown = set(calls.marks.values())
            known = {tool.function.name: tool.function.parameters or {} for tool in tools}
            reader = partial(CallReader, calls.form, known)
        answers = Answers(
            identity, self.name, self._tokenizer, isinstance(request, ChatRequest), logprobs is not None, trace,
            request.n, reader,
        )  # fmt: skip
        before = [str(self._tokenizer.decode(ids)) if echo else "" for ids in prompts for _ in range(request.n)]
        self.scheduler.submit(jobs)
        return Exchange(jobs, events, answers, before)

    def close(self, exchange: Exchange) -> None:
        """Cancel the jobs that have not ended."""
        for index in set(range(len(exchange.jobs))) - exchange.ended:
            self.scheduler.cancel(exchange.jobs[index])

    async def gather(self, exchange: Exchange) -> list[Choice]:
        """All choices of a request that is not streamed."""
        choices = [Choice() for _ in exchange.jobs]
        async for index, event in exchange.each():
            if isinstance(event, Piece):
                choices[index].add(event)
            elif not isinstance(event, Failed):
                choices[index].ended = event
        return choices

    def _prompts(self, prompt: Prompt) -> list[list[int]]:
        texts: Any = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        found = [self.tokens(text) if isinstance(text, str) else list(text) for text in texts]
        vocabulary = self.lm.shapes.vocabulary
        for ids in found:
            if not ids:
                raise ApiError(400, "the prompt is empty", "prompt")
            if max(ids) >= vocabulary:
                raise ApiError(400, f"token {max(ids)} is not among the model's {vocabulary}", "prompt")
        return found

    def _longest(self, prompt: int, wanted: int | None) -> int:
        room = self.context - prompt
        if (room < 1 and wanted != 0) or room < (wanted or 0):
            asked = "" if wanted is None else f" and {wanted} new ones"
            whose = "this model's context" if self.context == self.lm.context else "this server's --max-model-len"
            raise ContextLengthError(f"{prompt} tokens of prompt{asked} exceed {whose} of {self.context}")
        return min(room, self.settings.default_max_tokens) if wanted is None else wanted

    def _job(
        self,
        request: ChatRequest | CompletionRequest,
        ids: list[int],
        longest: int,
        order: Order,
        emit: Any,
        index: int,
        logprobs: int | None,
        echo: bool,
        constraint: Constraint | None,
    ) -> Job:
        vocabulary = self.lm.shapes.vocabulary
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > _COLDEST:
            sampling = {
                "do_sample": True, "temperature": request.temperature, "top_p": request.top_p,
                "top_k": max(0, request.top_k or 0), "min_p": request.min_p or 0.0,
            }  # fmt: skip
        sampling |= {"presence_penalty": request.presence_penalty, "frequency_penalty": request.frequency_penalty}
        if request.repetition_penalty is not None:
            sampling["repetition_penalty"] = request.repetition_penalty
        if request.ignore_eos:
            sampling["eos_token_id"] = [-1]  # no token
        if request.logit_bias:
            biases = {int(token): bias for token, bias in request.logit_bias.items()}
            if max(biases) >= vocabulary:
                raise ApiError(400, f"token {max(biases)} is not among the model's {vocabulary}", "logit_bias")
            sampling["sequence_bias"] = {(token,): bias for token, bias in biases.items()}
        seed = secrets.randbits(62) if request.seed is None else request.seed
        asked = None if request.efficiency is None else request.efficiency.deadline_ms
        deadline = None if asked is None else self.scheduler.clock() + asked / 1000
        return Job(
            np.array(ids, dtype=np.int64), longest, order, emit, (seed + index) % (1 << 63), sampling, request.stops,
            logprobs, echo and logprobs is not None, deadline, constraint,
        )  # fmt: skip
