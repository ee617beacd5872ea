"""What a backend does: one attempt to get verdicts. Waiting and trying again is not its
business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from rarl.errors import UserError
from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

# HTTP: something about the content is wrong, and the same again would be refused again
REFUSALS = (400, 413, 422)
# What no server can find too long or indecent: where even this is refused, the request as such is
# wrong.
PLAIN = Candidate("Is there a lesion?", None, "no", None, "no", None, "no")


class TryAgain(Exception):
    """This attempt failed and another may not. `wait_seconds` is what the server asked for, if it
    did. When no attempt succeeds, `mistake` is what the user should be told, if the failure looks
    like theirs."""

    def __init__(
        self, reason: str, wait_seconds: float | None = None, mistake: UserError | None = None
    ) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.mistake = mistake


class Backend(Protocol):
    identity: tuple[str, ...]  # who is asked: a part of the cache's key
    name: str  # the same for people; holds no secret
    batch_size: int  # candidates of one attempt

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """A verdict per candidate, in order. Raises TryAgain, or UserError where only the user can
        mend it."""
        ...

    async def close(self) -> None: ...


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; its other form, a date, is not used by judges."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
