"""A judge as the training loop sees it: replies go in, futures of verdicts come out at once."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields

from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

MAX_CORRECTNESS = 3


@dataclass(frozen=True)
class JudgeCounts:
    """What became of the candidates of a judge so far. Each is in exactly one of the first three
    once it is done."""

    scored: int = 0
    unparsable: int = 0
    unreachable: int = 0
    cached: int = 0  # of them, those whose verdict was on disk
    shared: int = 0  # of them, those that an equal one in flight at the same time was asked for
    attempts: int = 0  # requests that were sent, those that failed included
    asked_seconds: float = 0.0  # sum of the requests' durations; above the wall clock's

    @property
    def done(self) -> int:
        return self.scored + self.unparsable + self.unreachable

    def __add__(self, other: JudgeCounts) -> JudgeCounts:
        return JudgeCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Judge(ABC):
    """Safe to use from several threads. `submit` never waits for a verdict. `sees`: candidates are
    to bring their images."""

    sees = False

    def __init__(self) -> None:
        self._counts = JudgeCounts()
        self._counting = threading.Lock()

    @abstractmethod
    def submit(self, candidates: Sequence[Candidate]) -> list[Future[Verdict]]:
        """Returns a future per candidate, in order. It raises UserError where the judge is set up
        wrongly, and, with `on_unreachable: stop`, where it cannot be reached."""

    def score(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Submits the candidates and waits for their verdicts."""
        return [future.result() for future in self.submit(candidates)]

    def counts(self) -> JudgeCounts:
        with self._counting:
            return self._counts

    @abstractmethod
    def close(self) -> None:
        """Gives up what is in flight, and the judge's thread and connections."""

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, added: JudgeCounts) -> None:
        with self._counting:
            self._counts += added


def counted(verdict: Verdict, number: int = 1) -> JudgeCounts:
    """Returns the counts of `number` candidates that got this verdict."""
    return JudgeCounts(**{verdict.status: number})


def score_verdict(verdict: Verdict | None, weight: float) -> float | None:
    """Returns what `judge` pays for a verdict, with `weight` for the correctness grade."""
    if verdict is None or verdict.status == "unreachable":
        return None
    if verdict.status == "unparsable":
        return 0.0
    graded = None if verdict.correctness is None else verdict.correctness / MAX_CORRECTNESS
    if graded is None or verdict.explanation is None:
        return verdict.explanation if graded is None else graded
    return weight * graded + (1 - weight) * verdict.explanation
