"""The page as a Ray Serve application: `rarl.serving.page.app:build_page`. It serves files; all
else the browser asks of `/v1`, with the visitor's own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve

from rarl.errors import UserError

STATIC = Path(__file__).parent / "static"
# Nothing from elsewhere, no script within a text, nobody's frame; pictures may come from the page's
# own memory.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]


@serve.deployment(name="Page")
@serve.ingress()
class Page:
    def __serve_build_asgi_app__(self) -> Any:
        return build_files()


def build_files() -> Any:
    """The files as an ASGI application, with the headers above on every reply."""
    from starlette.staticfiles import StaticFiles

    files = StaticFiles(directory=STATIC, html=True)

    async def with_headers(scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        if scope["type"] == "http":
            await answer(scope, receive, send_more)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException
        from starlette.responses import PlainTextResponse

        try:
            await files(scope, receive, send)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)

    return with_headers


def build_page(args: dict[str, Any]) -> serve.Application:
    """`num_cpus` of the one replica is the only argument."""
    if set(args) - {"num_cpus"}:
        raise UserError(
            f"page application: unknown key '{min(set(args) - {'num_cpus'})}'; there is num_cpus alone"
        )
    page: Any = Page
    return page.options(
        ray_actor_options={"num_cpus": args.get("num_cpus", 0.1)}, max_ongoing_requests=500
    ).bind()
