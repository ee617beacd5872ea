"""The page for people as a Ray Serve application: `rarl.serving.page.app:build_page`. It serves
files, so it keeps no state; all else the browser asks of `/v1`, with the visitor's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from ray import serve
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from rarl.errors import UserError

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


@serve.deployment(name="Page")
@serve.ingress()
class Page:
    def __serve_build_asgi_app__(self) -> PageFiles:
        return PageFiles(directory=Path(__file__).parent / "static", html=True)


def build_page(args: dict[str, Any]) -> serve.Application:
    """The only argument is `num_cpus`, of the one replica. Raises UserError for another."""
    if unknown := set(args) - {"num_cpus"}:
        raise UserError(f"page application: unknown key '{min(unknown)}'; there is num_cpus alone")
    page: Any = Page
    actor = {"num_cpus": args.get("num_cpus", 0.1)}
    return page.options(ray_actor_options=actor, max_ongoing_requests=500).bind()
