"""The HTTP API."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from openai.types import Model
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from solm.core.actions import AXES
from solm.serving.answers import Choice
from solm.serving.failures import ApiError, from_validation, handle_errors
from solm.serving.gate import OPEN, Gate
from solm.serving.health import add_health
from solm.serving.request_log import described
from solm.serving.requests import BODIES, ChatRequest, CompletionRequest, TokenizeRequest
from solm.serving.rows import Failed, Piece
from solm.serving.service import Exchange, Service
from solm.serving.settings import BODY_SECONDS, MAX_BODY
from solm.serving.tracing import SpanSender, tracing_wanted

Body = TypeVar("Body", bound=BaseModel)
_PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'"
_SCRIPTS = ("page", "answers", "card", "chats", "dial", "elements", "markdown", "stream")
_STATIC = {"page.css": "text/css"} | {f"{name}.js": "text/javascript" for name in _SCRIPTS}


def create_app(service: Service, keys: Sequence[str] = (), hosts: Sequence[str] | None = None) -> FastAPI:
    """The application.

    keys: API keys (see `ApiKey.parse`), of which every route but those under `/health` requires one; none: no
        key is required.
    hosts: accepted names in the Host header, None: any (see `Gate`).
    """

    spans = SpanSender() if tracing_wanted() else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.start())
        yield
        warming.cancel()
        await run_in_threadpool(service.scheduler.stop, service.settings.drain_seconds)
        if spans is not None:
            await run_in_threadpool(spans.close)
        gc.unfreeze()

    app = FastAPI(title="solm", version=version("solm"), lifespan=lifespan, docs_url=None, redoc_url=None)
    handle_errors(app)
    app.add_middleware(Gate, keys=keys, metrics=service.metrics, hosts=hosts, spans=spans)
    add_health(app, service)

    @app.post("/v1/chat/completions", **_takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """A reply to a conversation, streamed or whole."""
        return await _complete(service, request, await _parse(request, ChatRequest))

    @app.post("/v1/completions", **_takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        """A continuation of a text or of token ids, streamed or whole."""
        return await _complete(service, request, await _parse(request, CompletionRequest))

    @app.post("/tokenize", **_takes(TokenizeRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        """Token ids of a text, or of messages through the chat template."""
        asked = await _parse(request, TokenizeRequest)
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

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(_file("page.html"), headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _STATIC:
            raise ApiError(404, "not found")
        return Response(_file(name), media_type=_STATIC[name])

    _describe(app)
    return app


async def _parse(request: Request, kind: type[Body]) -> Body:
    """The body as `kind`. FastAPI's own parsing is not used: it has no limits on size and time, and it accepts NaN and
    unlimited nesting as JSON."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the content type must be application/json", code="invalid_content_type")
    body = bytearray()
    large = ApiError(413, f"the body exceeds {MAX_BODY} bytes", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} s", code="body_too_slow") from None
    except ClientDisconnect:
        raise ApiError(499, "the client disconnected") from None
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        raise from_validation(error) from error


async def _complete(service: Service, request: Request, asked: ChatRequest | CompletionRequest) -> Response:
    if not service.ready:
        raise ApiError(503, "the server is warming up", code="starting")
    loop = asyncio.get_running_loop()
    kind = "chatcmpl" if isinstance(asked, ChatRequest) else "cmpl"
    exchange = await run_in_threadpool(service.open, asked, f"{kind}-{request.state.identity}", loop, request.state.key)
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_events(service, request, exchange, with_usage), media_type="text/event-stream")
    gathering = asyncio.ensure_future(service.gather(exchange))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({gathering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            request.state.log = described(exchange.jobs, None)
            return Response(status_code=499)
        choices = gathering.result()
        request.state.log = described(exchange.jobs, choices)
        whole = await run_in_threadpool(exchange.answers.whole, choices, exchange.echo)
        return Response(whole.model_dump_json(exclude_unset=True, warnings=False), media_type="application/json")
    except ApiError as error:
        request.state.log = described(exchange.jobs, None, error.code)
        raise
    finally:
        gathering.cancel()
        gone.cancel()
        service.close(exchange)


async def _gone(request: Request) -> None:
    """Returns when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
                yield _sse(exchange.answers.last(index, event))
        if with_usage:
            yield _sse(exchange.answers.spent(choices))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        failed = error.code
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        request.state.log = described(exchange.jobs, choices, failed)
        service.close(exchange)


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


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    streamed: dict[str, Any] = {"text/event-stream": {}} if kind is not TokenizeRequest else {}
    return {
        "openapi_extra": {"requestBody": body},
        "responses": {200: {"description": "The answer.", "content": streamed}}
        | {
            status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
            for status, text in (
                (400, "Something in the request cannot be done."), (404, "Unknown model."), (408, "Body too slow."),
                (413, "Body too large."), (429, "Too many rows wait."), (503, "Starting or stopping."),
                (504, "Out of time."),
            )
        },
    }  # fmt: skip


def _describe(app: FastAPI) -> None:
    """Add to the OpenAPI document what FastAPI does not know: the bodies, which `_parse` reads, and some responses."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        _, schemas = models_json_schema(
            [(kind, "validation") for kind in BODIES], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # mistakes are answered with 400
                if path not in OPEN:
                    operation["responses"]["401"] = {"description": "A valid API key is needed."}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _file(name: str) -> str:
    return resources.files("solm.serving").joinpath("page", name).read_text()
