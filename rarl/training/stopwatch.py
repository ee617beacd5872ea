"""Where a step's seconds go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase; what is in no phase is `other`, so that nothing is left out of the step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.phases = dict.fromkeys(("data", "rollout", "reward", "update", "publish", "save"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.phases[name] += time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """Seconds of the step that ends now; the next one begins."""
        now = time.perf_counter()
        whole = now - self.started
        seconds = self.phases | {"other": whole - sum(self.phases.values()), "step": whole}
        self.started, self.phases = now, dict.fromkeys(self.phases, 0.0)
        return {f"seconds/{name}": value for name, value in seconds.items()}
