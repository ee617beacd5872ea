"""The page for people as a Ray Serve application: `rarl.serving.page.app:build_page`. It serves
files, so it keeps no state; all else the browser asks of `/v1`, with the visitor's own key."""

from __future__ import annotations

from typing import Any

from ray import serve

from rarl.errors import UserError
from rarl.serving.page.files import STATIC, PageFiles


@serve.deployment(name="Page")
@serve.ingress()
class Page:
    def __serve_build_asgi_app__(self) -> PageFiles:
        return PageFiles(directory=STATIC, html=True)


def build_page(args: dict[str, Any]) -> serve.Application:
    """The only argument is `num_cpus`, of the one replica. Raises UserError for another."""
    if unknown := set(args) - {"num_cpus"}:
        raise UserError(f"page application: unknown key '{min(unknown)}'; there is num_cpus alone")
    page: Any = Page
    actor = {"num_cpus": args.get("num_cpus", 0.1)}
    return page.options(ray_actor_options=actor, max_ongoing_requests=500).bind()
