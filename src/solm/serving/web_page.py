"""The page to try a server at: what is in the folder `page`, under ``/`` and ``/static``."""

from importlib import resources

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from solm.serving.failures import ApiError

_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'"
_SCRIPTS = ("page", "answers", "card", "chats", "dial", "elements", "markdown", "stream")
_STATIC = {"page.css": "text/css"} | {f"{name}.js": "text/javascript" for name in _SCRIPTS}


def add_page(app: FastAPI) -> None:
    """Add the routes of the page."""

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(_file("page.html"), headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _STATIC:
            raise ApiError(404, "not found")
        return Response(_file(name), media_type=_STATIC[name])


def _file(name: str) -> str:
    return resources.files("solm.serving").joinpath("page", name).read_text()
