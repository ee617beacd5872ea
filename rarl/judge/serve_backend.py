"""RARL's own judge application, over HTTP or by its handle within a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from rarl.errors import UserError
from rarl.judge.backend import PLAIN, REFUSALS, TryAgain, retry_after, without_password
from rarl.judge.candidate import Candidate
from rarl.judge.rubric import printable, unparsable
from rarl.judge.wire import ScoreReply, candidate_json
from rarl.schema import Verdict

BATCH = 8  # small, since a batch is as slow as its slowest candidate
MISCONFIGURED = 424  # what the application answers when its own backend is set up wrongly


class HttpBackend:
    """`POST url/score`."""

    batch_size = BATCH

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self.identity: tuple[str, ...] = ("serve", without_password(url))
        self.name = f"application at {without_password(url)}"
        self.timeout_seconds = timeout_seconds
        self._url = url.rstrip("/") + "/score"
        self._answered = False
        self._client = httpx.AsyncClient(timeout=timeout_seconds)

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        response = await self._post(candidates)
        if response.status_code == 200:
            self._answered = True
            return read_verdicts(response.content, len(candidates))
        if response.status_code in REFUSALS:
            await self._check_request()
            if len(candidates) > 1:  # one of them is too long, say: the others shall not suffer
                return [
                    verdict for candidate in candidates for verdict in await self.judge([candidate])
                ]
            return [unparsable(f"refused by the application: {said(response)}")]
        raise self._explained(response)

    async def _check_request(self) -> None:
        """Tells a refused candidate from an application that refuses all. Raises UserError for the
        latter."""
        if not self._answered and (response := await self._post([PLAIN])).status_code in REFUSALS:
            raise UserError(
                f"the judge {self.name} refuses every request: {said(response)}; is it RARL's judge?"
            )

    async def _post(self, candidates: Sequence[Candidate]) -> httpx.Response:
        body = {"candidates": [candidate_json(candidate) for candidate in candidates]}
        try:
            return await asyncio.wait_for(
                self._client.post(self._url, json=body), timeout=self.timeout_seconds
            )
        except (TimeoutError, httpx.TimeoutException):
            raise TryAgain(f"no answer within {self.timeout_seconds:g} s") from None
        except httpx.RequestError as error:
            raise TryAgain(f"no connection: {error or type(error).__name__}") from None

    def _explained(self, response: httpx.Response) -> Exception:
        status = response.status_code
        if status == MISCONFIGURED:
            return UserError(f"the judge {self.name} is set up wrongly: {said(response)}")
        mistake = None
        # Ray Serve answers 404 while an application is deployed: a mistake only if it never was
        # another answer.
        if status < 500 and status != 429 and not self._answered:
            mistake = UserError(
                f"the judge {self.name} is not there (HTTP {status} for /score); see judge.url"
            )
        wait = retry_after(response.headers.get("retry-after"))
        return TryAgain(f"HTTP {status}: {said(response)}", wait, mistake)

    async def close(self) -> None:
        await self._client.aclose()


class HandleBackend:
    """The application NAME of the Ray cluster that this process is part of."""

    batch_size = BATCH

    def __init__(self, application: str, timeout_seconds: float) -> None:
        self.identity: tuple[str, ...] = ("serve", f"app:{application}")
        self.name = f"application app:{application}"
        self.application = application
        self.timeout_seconds = timeout_seconds
        self._handle: Any = None

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        import ray

        if not ray.is_initialized():
            raise UserError(
                f"judge.url=app:{self.application} needs a Ray cluster that this process is part of"
            )
        try:
            asking = self._ask([candidate_json(candidate) for candidate in candidates])
            reply = await asyncio.wait_for(asking, timeout=self.timeout_seconds)
        # Ray gives it the stack trace for a text, and the original as its cause
        except UserError as error:
            cause = getattr(error, "cause", error)
            raise UserError(f"the judge {self.name} is set up wrongly: {cause}") from None
        except TimeoutError:
            raise TryAgain(f"no answer within {self.timeout_seconds:g} s") from None
        # a replica that died, back-pressure, no such application: Ray has a type for each
        except Exception as error:
            self._handle = None
            raise TryAgain(f"{type(error).__name__}: {first_line(error)}") from None
        return read_verdicts(reply, len(candidates))

    async def _ask(self, candidates: list[dict[str, Any]]) -> bytes:
        from ray import serve

        if self._handle is None:
            self._handle = await asyncio.to_thread(serve.get_app_handle, self.application)
        reply: bytes = await self._handle.score.remote(candidates)
        return reply

    async def close(self) -> None:
        self._handle = None


def read_verdicts(body: bytes, expected: int) -> list[Verdict]:
    try:
        verdicts = [message.verdict() for message in ScoreReply.model_validate_json(body).verdicts]
    except ValidationError:
        raise TryAgain("the answer holds no verdicts") from None
    if len(verdicts) != expected:
        raise TryAgain(f"{len(verdicts)} verdicts for {expected} candidates")
    return verdicts


def said(response: httpx.Response) -> str:
    try:
        body = response.json()
        return printable(
            str(body["detail"] if isinstance(body, dict) and "detail" in body else response.text)
        )
    except ValueError:
        return printable(response.text)


def first_line(error: Exception) -> str:
    return printable(str(error).splitlines()[0]) if str(error) else ""
