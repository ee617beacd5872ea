"""A judge that is asked over the network, in a thread of its own: the step goes on while it
thinks."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rarl.errors import UserError
from rarl.judge.backend import Backend, TryAgain
from rarl.judge.cache import VerdictCache, verdict_key
from rarl.judge.candidate import Candidate
from rarl.judge.judge import Judge, JudgeCounts, counted
from rarl.judge.rubric import unreachable
from rarl.schema import Verdict

FIRST_WAIT = 1.0  # seconds before the second attempt
WAIT_FACTOR = 3.0
LONGEST_WAIT = 60.0


@dataclass
class Pending:
    """A candidate in flight. `futures` grows when an equal candidate is submitted meanwhile."""

    key: str
    candidate: Candidate
    seen_probes: int  # failed probes when it was submitted
    futures: list[Future[Verdict]] = field(default_factory=list)


class RemoteJudge(Judge):
    """Asks a backend with at most `concurrency` attempts in flight.

    An attempt that fails is repeated up to `retries` times, after about 1, 3, 9, … seconds. When
    even that fails, the judge is taken to be down: the next candidates wait for a single attempt
    with one of them, and if that fails too, they all are unreachable. So a dead judge costs a step
    its retries once, not once per candidate.
    """

    def __init__(
        self,
        backend: Backend,
        cache: VerdictCache | None = None,
        *,
        concurrency: int = 16,
        retries: int = 3,
        stop_when_unreachable: bool = False,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.cache = cache
        self.retries = retries
        self.stop_when_unreachable = stop_when_unreachable
        self.first_wait = first_wait
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}
        self._closed = False
        self._down = False
        self._failed_probes = 0
        self._slots = asyncio.Semaphore(concurrency)
        self._probing = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def submit(self, candidates: Sequence[Candidate]) -> list[Future[Verdict]]:
        futures: list[Future[Verdict]] = [Future() for _ in candidates]
        fresh: list[Pending] = []
        with self._lock:
            if self._closed:
                raise RuntimeError("the judge is closed")
            for candidate, future in zip(candidates, futures, strict=True):
                if pending := self._join(candidate, future):
                    fresh.append(pending)
        size = self.backend.batch_size
        for start in range(0, len(fresh), size):
            asyncio.run_coroutine_threadsafe(self._ask(fresh[start : start + size]), self._loop)
        return futures

    def _join(self, candidate: Candidate, future: Future[Verdict]) -> Pending | None:
        """Answers a future from the cache, or adds it to an equal candidate in flight, or returns
        what to ask for."""
        key = verdict_key(self.backend.identity, candidate)
        if pending := self._pending.get(key):
            pending.futures.append(future)
            return None
        if self.cache is not None and (verdict := self.cache.get(key)):
            self._count(counted(verdict) + JudgeCounts(cached=1))
            future.set_result(verdict)
            return None
        pending = self._pending[key] = Pending(key, candidate, self._failed_probes, [future])
        return pending

    async def _ask(self, batch: list[Pending]) -> None:
        """Settles every future of the batch, unless it is cancelled; see `close`."""
        try:
            async with self._slots:
                verdicts = await self._verdicts(batch)
            for pending, verdict in zip(batch, verdicts, strict=True):
                if verdict.status == "unreachable" and self.stop_when_unreachable:
                    self._fail(pending, self._lost(verdict))
                else:
                    self._settle(pending, verdict)
        except Exception as error:  # a future that stays open would hang the run
            for pending in batch:
                self._fail(pending, error)

    async def _verdicts(self, batch: list[Pending]) -> list[Verdict]:
        try:
            if not self._down:
                return await self._persist(batch, self.retries)
            async with self._probing:
                if self._down and batch[0].seen_probes < self._failed_probes:
                    raise TryAgain("it was down a moment ago")
                if self._down:
                    return await self._persist(batch, 0)
            return await self._persist(batch, self.retries)
        except TryAgain as error:
            if error.mistake:
                raise error.mistake from None
            return [unreachable(str(error)) for _ in batch]

    async def _persist(self, batch: list[Pending], retries: int) -> list[Verdict]:
        """One attempt and up to `retries` more. Raises the last attempt's TryAgain, and takes note
        that it is down."""
        for number in range(retries + 1):
            try:
                verdicts = await self._attempt(batch)
                self._down = False
                return verdicts
            except TryAgain as error:
                if number == retries:
                    self._failed_probes += self._down
                    self._down = True
                    attempts = f"{number + 1} attempt{'s' if number else ''}"
                    raise TryAgain(f"{attempts} failed: {error}", mistake=error.mistake) from None
                wait = error.wait_seconds or self.first_wait * WAIT_FACTOR**number * random.uniform(
                    0.75, 1.25
                )
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _attempt(self, batch: list[Pending]) -> list[Verdict]:
        start = time.monotonic()
        try:
            verdicts = await self.backend.judge([pending.candidate for pending in batch])
        finally:
            self._count(JudgeCounts(attempts=1, asked_seconds=time.monotonic() - start))
        if len(verdicts) != len(batch):
            raise TryAgain(f"{len(verdicts)} verdicts for {len(batch)} candidates")
        return verdicts

    def _settle(self, pending: Pending, verdict: Verdict) -> None:
        if self.cache is not None:
            self.cache.put(pending.key, verdict)
        futures = self._leave(pending)
        # Counted before anybody can see the result, so that the counts are never behind.
        self._count(counted(verdict, len(futures)) + JudgeCounts(shared=len(futures) - 1))
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_result(verdict)

    def _fail(self, pending: Pending, error: Exception) -> None:
        for future in self._leave(pending):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _lost(self, verdict: Verdict) -> UserError:
        return UserError(
            f"the judge {self.backend.name} cannot be reached ({verdict.reason}); start it, or set"
            " judge.on_unreachable=continue"
        )

    def _leave(self, pending: Pending) -> list[Future[Verdict]]:
        """The futures to settle; from now on an equal candidate is asked for anew. Empty for one
        that was settled."""
        with self._lock:
            if self._pending.get(pending.key) is pending:
                del self._pending[pending.key]
            futures, pending.futures = pending.futures, []
            return futures

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        for pending in list(self._pending.values()):
            for future in self._leave(pending):
                future.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self.cache is not None:
            self.cache.close()

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.backend.close()
