"""The HTTP API."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from openai.types import Model
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from solm.core.actions import AXES
from solm.serving.answers import Choice
from solm.serving.bodies import describe, hung_up, read_body, takes
from solm.serving.failures import ApiError, handle_errors
from solm.serving.gate import HEADERS, Gate
from solm.serving.health import add_health
from solm.serving.request_log import log_facts
from solm.serving.requests import ChatRequest, CompletionRequest, TokenizeRequest
from solm.serving.response_requests import ResponsesRequest
from solm.serving.responses import ResponseWriter
from solm.serving.rows import Failed, Piece
from solm.serving.service import Exchange, Service
from solm.serving.tracing import SpanSender, tracing_wanted
from solm.serving.web_page import add_page

_PREFIXES = {ChatRequest: "chatcmpl-", CompletionRequest: "cmpl-", ResponsesRequest: "resp_"}
"""Of what replies are called."""


def create_app(
    service: Service, hosts: Sequence[str] | None = None, root_path: str = "", origins: Sequence[str] = ()
) -> FastAPI:
    """The application. With any key in `service.keys` every route but those under `/health` requires one.

    hosts: accepted names in the Host header, None: any (see `Gate`). root_path: what a proxy puts before the paths,
    such as ``/llm``; paths may come with it or without. origins: pages of other sites that browsers let call the API
    (CORS), such as ``https://example.org``, or ``*``.
    """

    spans = SpanSender() if tracing_wanted() else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.start())
        yield
        warming.cancel()
        await run_in_threadpool(service.scheduler.stop, service.settings.drain_seconds)
        await run_in_threadpool(service.constraints.close)
        if spans is not None:
            await run_in_threadpool(spans.close)
        gc.unfreeze()

    app = FastAPI(
        title="solm", version=version("solm"), lifespan=lifespan, docs_url=None, redoc_url=None, root_path=root_path
    )
    handle_errors(app)
    app.add_middleware(Gate, keys=service.keys, metrics=service.metrics, hosts=hosts, spans=spans)
    if origins:  # around the gate: browsers send no key when they ask what is allowed
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=HEADERS,
        )  # fmt: skip
    ignore = service.settings.ignore_unknown
    add_health(app, service)

    @app.post("/v1/chat/completions", **takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """A reply to a conversation, streamed or whole."""
        return await _complete(service, request, await read_body(request, ChatRequest, ignore))

    @app.post("/v1/completions", **takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        """A continuation of a text or of token ids, streamed or whole."""
        return await _complete(service, request, await read_body(request, CompletionRequest, ignore))

    @app.post("/v1/responses", **takes(ResponsesRequest))
    async def responses(request: Request) -> Response:
        """A reply to a conversation in the form of the Responses API. Nothing is stored."""
        return await _complete(service, request, await read_body(request, ResponsesRequest, ignore))

    @app.post("/tokenize", **takes(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        """Token ids of a text, or of messages through the chat template."""
        asked = await read_body(request, TokenizeRequest, ignore)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give either prompt or messages", "prompt")
        ids = await run_in_threadpool(service.tokens, asked.messages or asked.prompt or "")
        return {"tokens": ids, "count": len(ids), "max_model_len": service.context}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, its policies and the budgets that it can meet."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", responses={404: {"description": "Unknown model."}})
    async def model(name: str) -> dict[str, Any]:
        """The same for one model."""
        service.check_name(name)
        return _model(service)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    add_page(app)
    describe(app)
    return app


async def _complete(
    service: Service, request: Request, asked: ChatRequest | CompletionRequest | ResponsesRequest
) -> Response:
    if service.state == "failed":
        raise ApiError(503, "this server has failed and has to be started again", code="failed")
    if not service.ready:
        raise ApiError(503, "the server is warming up", code="starting")
    loop = asyncio.get_running_loop()
    identity = f"{_PREFIXES[type(asked)]}{request.state.identity}"
    try:
        body = asked.as_chat() if isinstance(asked, ResponsesRequest) else asked
    except ValidationError as error:  # what is more as a chat than as a response, such as messages with instructions
        message = f"input: too much for a chat ({error.errors()[0]['msg']})"
        raise ApiError(400, message, "input", "invalid_value") from error
    try:
        exchange = await run_in_threadpool(service.open, body, identity, loop, request.state.key)
    except ApiError as error:
        if body is not asked:
            _rename(error)
        raise
    writer = ResponseWriter(asked, exchange) if isinstance(asked, ResponsesRequest) else None
    if writer is not None and asked.stream:
        return StreamingResponse(_response_events(service, request, writer), media_type="text/event-stream")
    if not isinstance(asked, ResponsesRequest) and asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_events(service, request, exchange, with_usage), media_type="text/event-stream")
    gathering = asyncio.ensure_future(service.gather(exchange))
    gone = asyncio.ensure_future(hung_up(request.receive))
    try:
        await asyncio.wait({gathering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            request.state.log = log_facts(exchange, None)
            return Response(status_code=499)
        choices = gathering.result()
        request.state.log = log_facts(exchange, choices)
        if writer is not None:
            return JSONResponse(await run_in_threadpool(writer.whole, choices))
        whole = await run_in_threadpool(exchange.answers.whole, choices, exchange.echo)
        return Response(whole.model_dump_json(exclude_unset=True, warnings=False), media_type="application/json")
    except ApiError as error:
        request.state.log = log_facts(exchange, None, error.code)
        raise
    finally:
        gathering.cancel()
        gone.cancel()
        service.close(exchange)


def _rename(error: ApiError) -> None:
    """Say what is wrong by the names that fields have in the Responses API."""
    for name, theirs in (
        ("response_format.json_schema", "text.format"), ("response_format", "text.format"),
        (".function.parameters", ".parameters"), (".function.name", ".name"),
    ):  # fmt: skip
        error.message = error.message.replace(name, theirs, 1)
        error.param = None if error.param is None else error.param.replace(name, theirs, 1)


async def _events(service: Service, request: Request, exchange: Exchange, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of a streamed response. A client that disconnects early cancels what has not ended."""
    choices = [Choice() for _ in exchange.jobs]
    begun: set[int] = set()
    failed = None
    try:
        async for index, event in exchange.each():
            if isinstance(event, Piece):
                choices[index].said += event.tokens
                first = index not in begun
                begun.add(index)
                before = exchange.echo[index] if first else ""
                yield _sse(exchange.answers.piece(index, event, first, before))
            elif not isinstance(event, Failed):
                choices[index].ended = event
                if index not in begun and exchange.echo[index]:  # no token follows the prompt that is repeated
                    yield _sse(exchange.answers.piece(index, Piece("", ()), True, exchange.echo[index]))
                yield _sse(exchange.answers.last(index, event))
        if with_usage:
            yield _sse(exchange.answers.spent(choices))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        failed = error.code
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        request.state.log = log_facts(exchange, choices, failed)
        service.close(exchange)


async def _response_events(service: Service, request: Request, writer: ResponseWriter) -> AsyncIterator[str]:
    """The same for the Responses API."""
    choice, failed = Choice(), None
    try:
        async for event in writer.stream(choice):
            yield event
    except ApiError as error:
        failed = error.code
        yield writer.failed(error.body["error"])
    finally:
        request.state.log = log_facts(writer.exchange, [choice], failed)
        service.close(writer.exchange)


def _sse(event: BaseModel) -> str:
    return f"data: {event.model_dump_json(exclude_unset=True, warnings=False)}\n\n"


def _model(service: Service) -> dict[str, Any]:
    dial = service.dial
    axes = dict(zip(AXES, (dial.space.attention, dial.space.mlp, dial.space.bits), strict=True))
    offers = {
        "policies": list(dial.policies), "default_policy": dial.default, "axes": axes, "lowest_net": dial.lowest,
        "lowest_bytes": dial.lowest_bytes(service.context), "always_read": service.lm.sparsity.always_read,
        "floor": service.settings.slo_floor, "priorities": dial.priorities, "shapes": service.lm.shapes.model_dump(),
        "slo_tpot_ms": service.settings.slo_tpot_ms,
    }  # fmt: skip
    if service.lm.timings is not None:
        offers["fastest"] = dial.fastest(service.context)
    curve = None if service.lm.trained is None else service.lm.trained.curve
    if curve is not None:
        offers |= curve.told()
    known = Model(id=service.name, object="model", created=0, owned_by="solm").model_dump()
    return known | {"max_model_len": service.context, "efficiency": offers}
