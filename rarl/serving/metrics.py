"""Figures for Prometheus. Every ingress replica counts through Ray, and `/v1/metrics` reads the
nodes' agents, so that one scrape sees all replicas: ours, Ray Serve's, and vLLM's where
`log_engine_metrics` is on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

import httpx

ROUTES = (
    "/chat/completions",
    "/answer",
    "/preview",
    "/models",
    "/about",
    "/metrics",
    "/health",
    "/ready",
)
SHOWN = re.compile(r"^(# (HELP|TYPE) )?ray_(rarl|serve|vllm)_")
BUCKETS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]


class Metrics:
    """rarl_requests_total by route and status, rarl_request_seconds by route,
    rarl_requests_at_work, rarl_tokens_total of completions by adapter. No label holds anything that
    a client made up."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self._requests = metrics.Counter(
            "rarl_requests", "Requests by route and status.", ("route", "status")
        )
        self._seconds = metrics.Histogram(
            "rarl_request_seconds", "Until the reply's end.", BUCKETS, ("route",)
        )
        self._at_work = metrics.Gauge("rarl_requests_at_work", "Requests at work in a replica.")
        self._tokens = metrics.Counter(
            "rarl_completion_tokens", "Tokens of replies by adapter.", ("adapter",)
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        known = (
            route
            if route in ROUTES
            else "/models/NAME"
            if route.startswith("/models/")
            else "other"
        )
        self._requests.inc(tags={"route": known, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": known})

    def at_work(self, number: int) -> None:
        self._at_work.set(number)

    def tokens(self, adapter: str, number: int) -> None:
        if number > 0:
            self._tokens.inc(number, tags={"adapter": adapter})


async def read_cluster_metrics() -> str:
    """Prometheus' text format: the families of all nodes, each described once."""
    import ray

    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics"
        for n in nodes
        if n["Alive"]
    ]
    async with httpx.AsyncClient(timeout=5) as client:
        replies = await asyncio.gather(
            *(client.get(address) for address in addresses), return_exceptions=True
        )
    return merge(
        [reply.text for reply in replies if isinstance(reply, httpx.Response) and reply.is_success]
    )


def merge(texts: Iterable[str]) -> str:
    """Samples of one family together, below its description, as the format wants it."""
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                if SHOWN.match(line) and line not in described.setdefault(family, []):
                    described[family].append(line)
            elif SHOWN.match(line):
                samples.setdefault(family, []).append(line)
    lines = [line for family, own in samples.items() for line in (*described.get(family, []), *own)]
    return "\n".join(lines) + "\n"
