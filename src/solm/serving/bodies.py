"""Bodies of requests: read within limits of size and time, checked, and described for the OpenAPI document."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from solm.serving.failures import ApiError, from_validation
from solm.serving.gate import OPEN
from solm.serving.requests import TokenizeRequest
from solm.serving.response_requests import BODIES
from solm.serving.settings import BODY_SECONDS, MAX_BODY

Body = TypeVar("Body", bound=BaseModel)
_MOST_NAMES = 16
"""Ignored fields that are named to the client."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


async def read_body(request: Request, kind: type[Body], ignore_unknown: bool = False) -> Body:
    """The body as `kind`. FastAPI's own parsing is not used: it has no limits on size and time, and it accepts NaN and
    unlimited nesting as JSON.

    ignore_unknown: fields that `kind` lacks are passed over, and their names kept as `state.ignored` of the request;
    else they are refused. Raises `ApiError`.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "the content type must be application/json", code="invalid_content_type")
    body = await read_bytes(request)
    try:
        found = kind.model_validate_json(body, extra="allow" if ignore_unknown else None)
    except ValidationError as error:
        raise from_validation(error) from error
    if ignore_unknown:
        ignored = list(dict.fromkeys(_extra_fields(found)))
        request.state.ignored = [*ignored[:_MOST_NAMES], *(["..."] if len(ignored) > _MOST_NAMES else [])]
    return found


async def read_bytes(request: Request) -> bytes:
    """The body, within the limits of size and time. Raises `ApiError`."""
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
    return bytes(body)


async def hung_up(receive: Receive) -> None:
    """Returns when the client of a request whose body was read has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _extra_fields(part: Any, place: str = "") -> Iterator[str]:
    """The names of all fields that models within `part` lack; list items count as one place."""
    if isinstance(part, list) and part and isinstance(part[0], BaseModel):  # and not a long list of tokens
        for item in part:
            yield from _extra_fields(item, place)
    elif isinstance(part, BaseModel):
        # What a client calls its fields may be anything, and headers and logs take the names.
        yield from (f"{place}{name if _NAME.fullmatch(name) else '?'}" for name in part.model_extra or {})
        for name in type(part).model_fields:
            yield from _extra_fields(getattr(part, name), f"{place}{name}.")


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """What the document says of a route whose body is `kind`."""
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


def describe(app: FastAPI) -> None:
    """Add to the OpenAPI document what FastAPI does not know: the bodies that `read_body` reads, and some responses."""
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
