"""SIGTERM, as schedulers send it before they take a machine away: the run ends soon, with nothing
lost.

While it trains it finishes the step that it is in and saves. Anything else is on disk as far as it
has come, so that it can end at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Stopped(BaseException):
    """The run was asked to end, and is ready to. Like KeyboardInterrupt, no error: nothing that
    catches errors may take it for one."""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, SIGTERM raises Stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ending_after_the_step(request: Path) -> Iterator[None]:
    """Inside, SIGTERM writes the file that the train worker looks for after each step; Stopped is
    raised at the end."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        request.touch()

    request.unlink(missing_ok=True)  # of an earlier process
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        request.unlink(missing_ok=True)
    if asked:
        raise Stopped
