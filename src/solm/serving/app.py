"""The HTTP API, and the page to try it at."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from solm.serving import settings as limits
from solm.serving.answers import Exchange
from solm.serving.errors import ApiError, handle_errors
from solm.serving.http import BodyRoute, RequestMiddleware
from solm.serving.infill import InfillExchange, InfillRequest
from solm.serving.logs import SpanSender, tracing_wanted
from solm.serving.responses import ResponseExchange, ResponsesRequest
from solm.serving.schema import ChatRequest, CompletionRequest, DetokenizeRequest, ReplyRequest, TokenizeRequest
from solm.serving.service import Service

_STREAMS: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": {"text/event-stream": {}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, text in (("4XX", "It cannot be done, as `error.message` says."), ("5XX", "Not now, or no more."))
}
_PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'"
_PAGE = Path(__file__).parent / "page"
_STATIC = {".css": "text/css", ".js": "text/javascript"}


def create_app(service: Service, hosts: Sequence[str] | None = None) -> FastAPI:
    """The application. With any key in `service.keys` every route but those under `/health` requires one, and
    `/metrics` by `service.settings`.

    hosts: accepted names in the Host header, None: any (see `RequestMiddleware`).
    """
    settings = service.settings
    spans = SpanSender() if tracing_wanted() else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.start())
        yield
        warming.cancel()
        await run_in_threadpool(service.scheduler.stop, settings.drain_seconds)
        await run_in_threadpool(service.constraints.close)
        if spans is not None:
            await run_in_threadpool(spans.close)
        gc.unfreeze()

    app = FastAPI(
        title="solm", version=version("solm"), lifespan=lifespan, docs_url=None, redoc_url=None, responses=_REFUSALS
    )
    app.router.route_class, app.state.ignore_unknown = BodyRoute, settings.ignore_unknown
    handle_errors(app)
    app.add_middleware(RequestMiddleware, service=service, hosts=hosts, spans=spans)
    _add_health(app, service)
    _add_page(app)

    @app.post("/v1/chat/completions", responses=_STREAMS)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """A reply to a conversation, streamed or whole."""
        return await _reply(service, request, body, Exchange, "chatcmpl-")

    @app.post("/v1/completions", responses=_STREAMS)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """A continuation of a text or of token ids, streamed or whole."""
        return await _reply(service, request, body, Exchange, "cmpl-")

    @app.post("/v1/responses", responses=_STREAMS)
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        """A reply to a conversation in the form of the Responses API. Nothing is stored."""
        return await _reply(service, request, body, ResponseExchange, "resp_")

    @app.post("/infill", responses=_STREAMS)
    async def infill(request: Request, body: InfillRequest) -> Response:
        """What belongs between two pieces of code, in llama.cpp's form, streamed or whole."""
        return await _reply(service, request, body, InfillExchange, "fill-")

    @app.post("/tokenize")
    async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text, or of messages through the chat template."""
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", "prompt")
        ids = await run_in_threadpool(service.tokens, body.messages or body.prompt or "", (), body.told)
        return {"tokens": ids, "count": len(ids), "max_model_len": service.context}

    @app.post("/detokenize")
    async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, Any]:
        """The text of token ids: ``prompt`` as vLLM calls it, ``content`` as llama.cpp does."""
        text = await run_in_threadpool(service.text, body.tokens)
        return {"prompt": text, "content": text}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, its policies and the budgets that it can meet."""
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The same for one model."""
        service.check_name(name)
        return _model(service)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _add_health(app: FastAPI, service: Service) -> None:
    """Add the routes under `/health`, which need no API key."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Status 200 once the server is warm, and its limits."""
        held = service.settings.model_dump() | {"context": service.context}
        state = {"status": service.state, "limits": held, "version": version("solm")}
        return JSONResponse(state, 200 if service.state == "ready" else 503)

    @app.get("/health/live")
    async def live() -> JSONResponse:
        """Status 200 while the server can decode, also while it starts."""
        return JSONResponse({"status": service.state}, 503 if service.state == "failed" else 200)

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Status 200 while requests are welcome: warm, and not stopping."""
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)


def _add_page(app: FastAPI) -> None:
    """Add the routes of the page: what is in the folder `page`, under ``/`` and ``/static``."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(_PAGE / "page.html", headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> FileResponse:
        path = _PAGE / name
        if path.suffix not in _STATIC or not path.is_file():
            raise ApiError(404, "not found")
        return FileResponse(path, media_type=_STATIC[path.suffix])


async def _reply(
    service: Service, request: Request, body: ReplyRequest, answer: type[Exchange], prefix: str
) -> Response:
    """Carry out a request, and answer it whole or as a stream. prefix: of the reply's name."""
    if service.state == "failed":
        raise ApiError(503, "this server has failed and has to be started again", code="failed")
    if not service.ready:
        raise ApiError(503, "the server is warming up", code="starting")
    identity, key = f"{prefix}{request.state.identity}", request.state.key
    try:
        exchange = await run_in_threadpool(service.open, body, identity, key, answer)
    except ApiError as error:
        raise answer.named(error) from error
    if body.stream:
        return StreamingResponse(_streamed(service, request, exchange), media_type="text/event-stream")
    watching = asyncio.create_task(_watch(request, exchange))
    try:
        async for _ in exchange.each():
            pass
        request.state.log = exchange.facts()
        content = to_json(await run_in_threadpool(exchange.whole), inf_nan_mode="null")
        return Response(content, media_type="application/json")
    except ApiError as error:
        request.state.log = exchange.facts(error.code, arrived=False)
        raise
    finally:
        watching.cancel()
        service.close(exchange)


async def _watch(request: Request, exchange: Exchange) -> None:
    """End an exchange where the client, whose body was read, disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    exchange.events.put_nowait((0, ApiError(499, "the client disconnected", code="cancelled")))


async def _streamed(service: Service, request: Request, exchange: Exchange) -> AsyncIterator[bytes]:
    """Server-sent events of a streamed response. A client that disconnects early cancels what has not ended."""
    failed: str | None = "cancelled"
    try:
        async for event in _kept_alive(exchange.stream()):
            yield event
    except ApiError as error:
        failed = error.code
        yield exchange.failed(error)
    finally:
        request.state.log = exchange.facts(failed)
        service.close(exchange)


async def _kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same events, and a comment whenever none came for `KEEP_ALIVE_SECONDS`, such as while a prompt is read."""
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait({coming}, timeout=limits.KEEP_ALIVE_SECONDS))[0]:
                yield b": still at work\n\n"
            event = coming.result()
        finally:
            coming.cancel()
        if event is None:
            return
        yield event


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name, "object": "model", "created": 0, "owned_by": "solm", "max_model_len": service.context,
        "efficiency": service.budgets.describe(service.context), "facts": service.facts(),
    }  # fmt: skip
