"""The files of a page, as an ASGI application, with the headers that keep everything else out."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

# Nothing from elsewhere, no script within a text, nobody's frame; pictures may come from the page's
# own memory.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
STATIC = Path(__file__).parent / "static"
VENDOR = STATIC / "vendor"  # Preact, htm and Pico, for every page


class PageFiles(StaticFiles):
    """The files as an ASGI application, with HEADERS on every reply, a refusal included."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            response = PlainTextResponse(error.detail, error.status_code)
        response.headers.update(HEADERS)
        return response
