"""The judge that is asked over the network, in a thread of its own: the step goes on while it
thinks. `open_judge` makes any judge from the configuration. `Client` asks whom else one likes in
the same way."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic
from urllib.parse import urlsplit

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import HandleBackend, HttpBackend, LocalBackend, OpenAIBackend
from rarl.judge.cache import Cache, VerdictCache
from rarl.judge.candidate import Candidate
from rarl.judge.judge import Judge, JudgeCounts, counted
from rarl.judge.rubric import find_rubric
from rarl.judge.rules import RulesJudge
from rarl.judge.server import A, Backend, Q, TryAgain, without_password
from rarl.schema import Verdict

FIRST_WAIT = 1.0  # seconds before the second attempt
WAIT_FACTOR = 3.0
LONGEST_WAIT = 60.0
# Of a question that was not sent, since another one had just not been answered.
WAS_DOWN = "it was down a moment ago"


def open_judge(
    config: JudgeConfig, cache_path: Path | None, share: int = 1, engine: Any = None
) -> Judge:
    """Starts a judge; nothing is asked yet. `cache_path` is where verdicts are kept, if
    `config.cache` wants it; the rules need no cache, they are faster. Of `share` processes that
    each open one, each has its part of `config.concurrency`, at least 1. `engine` is the actor of
    `rarl.rollout.chat` where the judge is local.

    Raises UserError for a missing key variable or an unusable cache path.
    """
    check_judge(config)
    url, seconds = config.url or "", config.timeout_seconds
    backend: Backend[Candidate, Verdict]
    if config.backend == "rules":
        return RulesJudge()
    rubric, model = find_rubric(config.rubric), config.model or ""
    if config.backend == "local":
        backend = LocalBackend(engine, model, seconds, rubric)
    elif config.backend == "openai":
        key = read_key(config.api_key_env)
        backend = OpenAIBackend(url, model, key, config.api_key_env, seconds, rubric)
    elif url.startswith("app:"):
        backend = HandleBackend(url.removeprefix("app:"), seconds)
    else:
        backend = HttpBackend(url, seconds)
    cache = None
    if config.cache and cache_path:
        try:
            cache = VerdictCache(cache_path)
        except (OSError, sqlite3.Error) as error:
            fault = f"the judge's cache {cache_path} cannot be opened: {error}"
            raise UserError(f"{fault}; or set judge.cache=false") from None
    judge = RemoteJudge(
        backend,
        cache,
        concurrency=max(1, config.concurrency // share),
        retries=config.retries,
        stop_when_unreachable=config.on_unreachable == "stop",
    )
    judge.sees = config.image
    return judge


def check_judge(config: JudgeConfig) -> None:
    """Raises UserError for what is wrong before anything is asked: an address that is none, a key
    that is not set."""
    if config.backend in ("rules", "local"):
        return
    url = config.url or ""
    if not is_address(url) and not (config.backend == "serve" and url.startswith("app:")):
        forms = {"openai": "http://host:port/v1", "serve": "http://host:port/judge or app:NAME"}
        shown = without_password(url)
        raise UserError(f"judge.url: expected {forms[config.backend]}, got '{shown}'")
    read_key(config.api_key_env)


def is_address(url: str) -> bool:
    """Says whether a text is the address of a server."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def read_key(variable: str | None, setting: str = "judge.api_key_env") -> str | None:
    """Returns a key without the line end that a file of secrets leaves. Raises UserError where it
    is not set, or where no header can hold it: the error of an HTTP client would show it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{setting}: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):
        fault = "holds characters that no key has (line ends, accents)"
        raise UserError(f"{setting}: the environment variable {variable} {fault}")
    return key


class Client(Generic[Q, A]):
    """Asks a backend with at most `concurrency` attempts in flight.

    An attempt that fails is repeated up to `retries` times, after about 1, 3, 9, … seconds. When
    even that fails, the server is taken to be down: the next questions wait for a single attempt
    with one of them, and if that fails too, they all are unreachable. So a dead judge costs a step
    its retries once, not once per candidate.
    """

    def __init__(
        self,
        backend: Backend[Q, A],
        cache: Cache[A] | None = None,
        *,
        concurrency: int = 16,
        retries: int = 3,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self.backend, self.cache = backend, cache
        self.retries, self.first_wait = retries, first_wait
        self._closing, self._closed = threading.Lock(), False
        # What follows is touched by the client's own thread alone. `_pending` holds the futures
        # that wait for each question in flight, by its key.
        self._pending: dict[str, list[Future[A]]] = {}
        self._down, self._failed_probes = False, 0
        self._slots = asyncio.Semaphore(concurrency)
        self._probing = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        role = backend.subject.role
        self._thread = threading.Thread(target=self._loop.run_forever, name=role, daemon=True)
        self._thread.start()

    def submit(self, questions: Sequence[Q]) -> list[Future[A]]:
        """Returns a future per question, in order. It raises UserError where only the user can mend
        what is wrong. Never waits."""
        identity, key_of = self.backend.identity, self.backend.subject.key_of
        asked: list[tuple[str, Q, Future[A]]]
        asked = [(key_of(identity, one), one, Future()) for one in questions]
        with self._closing:
            if self._closed:
                raise RuntimeError(f"the {self.backend.subject.role} is closed")
            asyncio.run_coroutine_threadsafe(self._take(asked), self._loop)
        return [future for _, _, future in asked]

    def _note_answer(self, answer: A, waiting: int, cached: bool) -> A | Exception:
        """Takes note of an answer, for so many who wait, and returns what they are told."""
        return answer

    def _note_attempt(self, seconds: float) -> None:
        """Takes note of a request that was sent, and of what it took."""

    async def _take(self, asked: Sequence[tuple[str, Q, Future[A]]]) -> None:
        """Answers from the cache, adds futures to equal questions in flight, and asks for the
        others."""
        fresh: list[tuple[str, Q]] = []
        for key, question, future in asked:
            if key in self._pending:
                self._pending[key].append(future)
            elif self.cache is not None and (answer := self.cache.get(key)):
                settle([future], self._note_answer(answer, 1, cached=True))
            else:
                self._pending[key] = [future]
                fresh.append((key, question))
        size = self.backend.batch_size
        batches = [fresh[start : start + size] for start in range(0, len(fresh), size)]
        await asyncio.gather(*(self._ask(batch, self._failed_probes) for batch in batches))

    async def _ask(self, batch: list[tuple[str, Q]], failed_probes: int) -> None:
        """Settles every future of the batch, unless it is cancelled; see `close`. `failed_probes`
        were made before the batch was submitted."""
        results: Sequence[A | Exception]
        try:
            async with self._slots:
                results = await self._answers([one for _, one in batch], failed_probes)
        except Exception as error:  # a future that stays open would hang the run
            results = [error] * len(batch)
        for (key, _), result in zip(batch, results, strict=True):
            if not isinstance(result, Exception) and self.cache is not None:
                # In a thread, since a slow disk must not keep other answers waiting.
                await asyncio.to_thread(self.cache.put, key, result)
            # From now on an equal question is asked for anew, if it is not in the cache.
            futures = self._pending.pop(key)
            if not isinstance(result, Exception):
                # Noted before anybody can see the result, so that counts are never behind.
                result = self._note_answer(result, len(futures), cached=False)
            settle(futures, result)

    async def _answers(self, questions: Sequence[Q], failed_probes: int) -> Sequence[A]:
        try:
            if self._down:
                async with self._probing:
                    if self._down and failed_probes < self._failed_probes:
                        raise TryAgain(WAS_DOWN)
                    if self._down:
                        return await self._persist(questions, 0)
            return await self._persist(questions, self.retries)
        except TryAgain as error:
            if error.mistake:
                raise error.mistake from None
            return [self.backend.subject.unreachable(str(error))] * len(questions)

    async def _persist(self, questions: Sequence[Q], retries: int) -> list[A]:
        """Makes one attempt and up to `retries` more. Raises the last attempt's TryAgain, and takes
        note that the server is down."""
        for number in itertools.count():
            start = time.monotonic()
            try:
                answers = await self.backend.judge(questions)
                self._down = False
                return answers
            except TryAgain as error:
                if number == retries:
                    self._failed_probes += self._down
                    self._down = True
                    attempts = f"{number + 1} attempt{'s' if number else ''}"
                    raise TryAgain(f"{attempts} failed: {error}", mistake=error.mistake) from None
                growing = self.first_wait * WAIT_FACTOR**number * random.uniform(0.75, 1.25)
                wait = min(error.wait_seconds or growing, LONGEST_WAIT)
            finally:
                self._note_attempt(time.monotonic() - start)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Gives up what is in flight, the thread and the connections."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
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
        for future in itertools.chain.from_iterable(self._pending.values()):
            future.cancel()
        await self.backend.close()


def settle(futures: Sequence[Future[A]], result: A | Exception) -> None:
    """Sets the result of those futures that were not cancelled meanwhile."""
    for future in futures:
        if future.set_running_or_notify_cancel():
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class RemoteJudge(Client[Candidate, Verdict], Judge):
    """A judge behind a backend, asked and counted. With `stop_when_unreachable` whoever waits for a
    verdict that cannot be had gets a UserError."""

    def __init__(
        self,
        backend: Backend[Candidate, Verdict],
        cache: VerdictCache | None = None,
        *,
        stop_when_unreachable: bool = False,
        **options: Any,
    ) -> None:
        Judge.__init__(self)
        self.stop_when_unreachable = stop_when_unreachable
        Client.__init__(self, backend, cache, **options)

    def _note_answer(self, answer: Verdict, waiting: int, cached: bool) -> Verdict | Exception:
        shared = JudgeCounts(cached=int(cached), shared=waiting - 1)
        self._count(counted(answer, waiting) + shared)
        if answer.status != "unreachable" or not self.stop_when_unreachable:
            return answer
        fault = f"the judge {self.backend.name} cannot be reached ({answer.reason})"
        return UserError(f"{fault}; start it, or set judge.on_unreachable=continue")

    def _note_attempt(self, seconds: float) -> None:
        self._count(JudgeCounts(attempts=1, asked_seconds=seconds))
