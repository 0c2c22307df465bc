"""Health for operators and orchestrators: alive, ready, and what the server accepts."""

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from solm.serving.service import Service
from solm.serving.settings import FIXED_LIMITS


def add_health(app: FastAPI, service: Service) -> None:
    """Add the routes under `/health`, which need no API key."""

    @app.get("/health", responses={503: {"description": "Not ready."}})
    async def health() -> JSONResponse:
        """Status 200 once the server is warm, and its limits."""
        limits = service.settings.model_dump() | {"context": service.context} | FIXED_LIMITS
        state = {"status": service.state, "limits": limits, "version": version("solm")}
        return JSONResponse(state, 200 if service.state == "ready" else 503)

    @app.get("/health/live", responses={503: {"description": "The server has failed: restart it."}})
    async def live() -> JSONResponse:
        """Status 200 while the server can decode, also while it starts."""
        return JSONResponse({"status": service.state}, 503 if service.state == "failed" else 200)

    @app.get("/health/ready", responses={503: {"description": "Send no requests now."}})
    async def ready() -> JSONResponse:
        """Status 200 while requests are welcome: warm, and not told to stop."""
        return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)
