"""A judge's client and the server that it asks, for the tests of what it asks and of servers that
misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.judge.backends import OpenAIBackend
from rarl.judge.cache import VerdictCache
from rarl.judge.client import RemoteJudge
from tests.judge_faults import FaultyServer, praise, serving

Start = Callable[..., tuple[RemoteJudge, FaultyServer]]


@contextmanager
def asking(folder: Path) -> Iterator[Start]:
    """Yields what starts a server and a judge that asks it, with its cache in `folder`."""
    stack: list[Any] = []

    def begin(
        answer: Any = praise,
        *,
        timeout: float = 30,
        key: str | None = None,
        cache: bool = False,
        **options: Any,
    ) -> tuple[RemoteJudge, FaultyServer]:
        server_options = {
            name: options.pop(name)
            for name in ("faults", "rate", "seed", "slow_seconds", "most")
            if name in options
        }
        server = FaultyServer(answer, **server_options)
        address = serving(server)
        url = address.__enter__()
        stack.append(lambda: address.__exit__(None, None, None))
        backend = OpenAIBackend(f"{url}/v1", "m", key, "JUDGE_KEY" if key else None, timeout)
        kept = VerdictCache(folder / "verdicts.sqlite") if cache else None
        judge = RemoteJudge(backend, kept, **{"first_wait": 0.01, **options})
        stack.append(judge.close)
        return judge, server

    yield begin
    for undo in reversed(stack):
        undo()
