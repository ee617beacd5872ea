"""Clients that ask one question after the other, each with questions of its own whose right replies
are known."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Task:
    """A chat completion at temperature 0. `expected` is its text when it was asked alone."""

    body: dict[str, Any]
    expected: str = ""


@dataclass
class Outcome:
    """`wrong` are replies that belong to another request; `lost` are requests without any."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: int = 0
    lost: int = 0
    refused_without_retry_after: int = 0
    wall: float = 0.0

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def reply_text(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


def with_expected(
    url: str, headers: dict[str, str], bodies: Sequence[dict[str, Any]]
) -> list[Task]:
    """Asks each alone."""
    tasks = []
    with httpx.Client(headers=headers, timeout=300) as http:
        for body in bodies:
            response = http.post(f"{url}/chat/completions", json=body)
            response.raise_for_status()
            tasks.append(Task(body, reply_text(response.json())))
    return tasks


async def run_clients(
    url: str,
    headers: dict[str, str],
    tasks: Sequence[Task],
    clients: int,
    seconds: float,
    turns: int | None = None,
) -> Outcome:
    """`clients` at once, each asking until the time is over or it has had `turns` replies. Whoever
    is told 429 waits as long as the server says, and asks the same again."""
    outcome, started = Outcome(), time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=600, limits=limits) as http:

        async def client(number: int) -> None:
            draw, done = random.Random(number), 0
            while time.monotonic() - started < seconds and done != turns:
                await ask(http, url, draw.choice(tasks), outcome)
                done += 1

        await asyncio.gather(*(client(number) for number in range(clients)))
    outcome.wall = time.monotonic() - started
    return outcome


async def ask(http: httpx.AsyncClient, url: str, task: Task, outcome: Outcome) -> None:
    """Until there is a reply that is not 429."""
    while True:
        began = time.monotonic()
        try:
            response = await http.post(f"{url}/chat/completions", json=task.body)
        except httpx.HTTPError:
            outcome.lost += 1
            return
        outcome.statuses[response.status_code] += 1
        if response.status_code != 429:
            break
        if "retry-after" not in response.headers:
            outcome.refused_without_retry_after += 1
        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
    outcome.seconds.append(time.monotonic() - began)
    if response.status_code == 200:
        reply = response.json()
        outcome.tokens += reply["usage"]["completion_tokens"]
        outcome.wrong += reply_text(reply) != task.expected
