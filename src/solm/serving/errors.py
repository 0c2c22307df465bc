"""Errors as JSON in the form of OpenAI's API."""

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from solm.core.errors import BudgetError, ContextLengthError, SolmError, printable
from solm.serving.schema import Strict

_SHOWN = 80  # characters of a bad value in a message
_LONGEST = 300  # of what is wrong with it, which may repeat it, too


class ApiError(Exception):
    """A response with a status other than 200."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        message = printable(message)  # it may repeat what a client sent
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {401: {"WWW-Authenticate": 'Basic realm="solm"'}, 429: {"Retry-After": "1"}}.get(self.status)
        return JSONResponse(self.body, self.status, headers)


@cache
def _fields() -> frozenset[str]:
    """The names of all fields of all bodies."""

    def below(kind: type[BaseModel]) -> Iterator[str]:
        yield from (field.alias or name for name, field in kind.model_fields.items())
        for inner in kind.__subclasses__():
            yield from below(inner)

    return frozenset(below(Strict))


def from_validation(error: ValidationError) -> ApiError:
    """The first mistake in a body."""
    # A union reports errors for every branch. The branch that was meant has the right type and the deepest location.
    first = max(
        error.errors(include_url=False, include_context=False),
        key=lambda each: (not each["type"].endswith("_type"), len(each["loc"])),
    )
    unknown = first["type"] == "extra_forbidden"
    # Locations contain the names of union branches, which mean nothing to a user.
    parts = [part for part in first["loc"][: len(first["loc"]) - unknown] if isinstance(part, int) or part in _fields()]
    place = ".".join(str(part)[:_SHOWN] for part in [*parts, *first["loc"][-1:][:unknown]])
    if unknown:
        return ApiError(400, f"{place} is not supported by this server", place, "unsupported_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}", None, "invalid_json")
    if first["type"] == "missing":
        return ApiError(400, f"{place} is missing", place, "missing_required_parameter")
    got = repr(first.get("input"))
    shown = got if len(got) <= _SHOWN else got[:_SHOWN] + "..."
    return ApiError(400, f"{place or 'body'}: {first['msg'][:_LONGEST]} (got {shown})", place or None, "invalid_value")


def handle_errors(app: FastAPI) -> None:
    """Make `app` answer every error in that form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ApiError):
            return error.response()
        if isinstance(error, ContextLengthError):
            return ApiError(400, str(error), code="context_length_exceeded").response()
        if isinstance(error, SolmError):  # a user's mistake that a lower layer raised
            param = f"efficiency.{error.argument or 'budget'}" if isinstance(error, BudgetError) else None
            message = f"{param}: {error}" if param and error.argument else str(error)
            return ApiError(400, message, getattr(error, "field", param), "invalid_value").response()
        if isinstance(error, HTTPException):
            response = ApiError(error.status_code, str(error.detail)).response()
            response.headers.update(error.headers or {})
            return response
        logging.getLogger("solm.serving").error("%s failed", request.url.path, exc_info=error)
        return ApiError(500, "an error inside the server").response()

    for kind in (ApiError, SolmError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
