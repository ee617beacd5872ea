"""Backends: whom a judge asks, and one attempt to get verdicts. Waiting and trying again is the
client's business (`rarl.judge.client`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from pydantic import ValidationError

from rarl.errors import UserError, last_line
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json, image_uri
from rarl.judge.rubric import CHECKLIST, Rubric, printable, unparsable
from rarl.schema import Verdict

# HTTP: the content is wrong, and the same again would be refused again.
REFUSALS = (400, 413, 422)
MISCONFIGURED = 424  # what RARL's application answers when its own backend is set up wrongly
# No server finds this too long or indecent: where it is refused, the request as such is wrong.
PLAIN = Candidate("Is there a lesion?", None, "no", None, "no", None, "no")
# A grey picture of 56 by 56 pixels, which every model that sees takes.
PLAIN_IMAGE = image_uri(np.full((56, 56, 3), 127, np.uint8))
SEED = 0
BATCH = 8  # of RARL's application: small, since a batch is as slow as its slowest candidate


class TryAgain(Exception):
    """This attempt failed and another may not. `wait_seconds` is what the server asked for, if it
    did. `mistake` is what the user is told when no attempt succeeds, if the failure looks like
    theirs."""

    def __init__(
        self, reason: str, wait_seconds: float | None = None, mistake: UserError | None = None
    ) -> None:
        super().__init__(reason)
        self.wait_seconds, self.mistake = wait_seconds, mistake


class Refused(Exception):
    """The server refuses the content of this request; the message is what it says."""


class Backend(ABC):
    """`identity` is who is asked and in which words, a part of the cache's key; `name` is the same
    for people, without secrets; `batch_size` is the number of candidates of one attempt."""

    batch_size = BATCH
    kind = "application"
    wants = "is it RARL's judge?"  # the advice where every request is refused

    def __init__(
        self,
        identity: tuple[str, ...],
        name: str,
        timeout_seconds: float,
        rubric: Rubric = CHECKLIST,
    ) -> None:
        self.identity, self.name = (rubric.version, *identity), name
        self.timeout_seconds, self.rubric = timeout_seconds, rubric
        # The server has answered with verdicts: address, model, key and request are right. `saw`:
        # also about a candidate with an image.
        self.answered = self.saw = False

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Returns a verdict per candidate, in order. A candidate that the server refuses is
        unparsable, and costs the others of its batch nothing.

        Raises TryAgain, or UserError where only the user can mend it.
        """
        try:
            return await self._in_time(candidates)
        except Refused as refused:
            reason = f"refused by the {self.kind}: {refused}"
        if not self.answered or (candidates[0].image and not self.saw):
            await self._try_plain(bool(candidates[0].image))
        if len(candidates) > 1:
            return [verdict for one in candidates for verdict in await self.judge([one])]
        return [unparsable(reason)]

    async def _try_plain(self, image: bool) -> None:
        """Raises UserError where even the plainest candidate is refused, or is refused as soon as
        it has an image."""
        try:
            await self._in_time([PLAIN])
        except Refused as refused:
            every = f"the judge {self.name} refuses every request: {refused}; {self.wants}"
            raise UserError(every) from None
        if image:
            try:
                await self._in_time([replace(PLAIN, image=PLAIN_IMAGE)])
            except Refused as refused:
                raise cannot_see(self.name, f"it refuses images: {refused}") from None

    async def _in_time(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        # An HTTP client's own timeout is per read: a server that drips a byte now and then would
        # never meet it.
        try:
            verdicts = await asyncio.wait_for(self._ask(candidates), timeout=self.timeout_seconds)
        except TimeoutError:
            raise TryAgain(f"no answer within {self.timeout_seconds:g} s") from None
        if len(verdicts) != len(candidates):
            raise TryAgain(f"{len(verdicts)} verdicts for {len(candidates)} candidates")
        self.answered = True
        self.saw = self.saw or candidates[0].image is not None
        return verdicts

    @abstractmethod
    async def _ask(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Returns what the server answers. Raises TryAgain, UserError or Refused."""

    async def close(self) -> None:  # noqa: B027, since not every backend has connections
        """Closes connections."""


class HttpBackend(Backend):
    """RARL's application at a URL: `POST url/score`."""

    path = "/score"
    final: tuple[int, ...] = (MISCONFIGURED,)  # mistakes that another attempt cannot change

    def __init__(self, url: str, timeout_seconds: float, key: str | None = None) -> None:
        shown = without_password(url)
        super().__init__(("serve", shown), f"application at {shown}", timeout_seconds)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/") + self.path
        self._client = httpx.AsyncClient(
            timeout=None, headers=headers, follow_redirects=True, limits=httpx.Limits()
        )

    async def _ask(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        try:
            response = await self._client.post(self._url, json=self._body(candidates))
        except httpx.RequestError as error:
            raise TryAgain(f"no connection: {str(error) or type(error).__name__}") from None
        status = response.status_code
        if status == 200:
            return self._read(response.content, candidates)
        words = said_in(response)
        if status in REFUSALS:
            raise Refused(words)
        mistake = self._mistake(status, words)
        if mistake and status in self.final:
            raise mistake
        # Ray Serve answers 404 while an application is deployed: a mistake only if there never was
        # another answer.
        wait = retry_after(response.headers.get("retry-after"))
        raise TryAgain(f"HTTP {status}: {words}", wait, None if self.answered else mistake)

    def _body(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        return {"candidates": [candidate_json(candidate) for candidate in candidates]}

    def _read(self, content: bytes, candidates: Sequence[Candidate]) -> list[Verdict]:
        return read_verdicts(content)

    def _mistake(self, status: int, words: str) -> UserError | None:
        """Returns what the user should be told of a status that looks like their mistake."""
        if status == MISCONFIGURED:
            return UserError(f"the judge {self.name} is set up wrongly: {words}")
        if status >= 500 or status == 429:
            return None
        where = f"(HTTP {status} for /score); see judge.url"
        return UserError(f"the judge {self.name} is not there {where}")

    async def close(self) -> None:
        await self._client.aclose()


class OpenAIBackend(HttpBackend):
    """Any server with OpenAI's chat completions that decodes by a JSON schema (vLLM, Ray Serve
    LLM, a hosted model). `key` goes into the Authorization header and into no message."""

    batch_size = 1
    path = "/chat/completions"
    final = (401, 403)
    kind = "server"
    wants = "it must support response_format json_schema, temperature and max_completion_tokens"

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        variable: str | None,
        timeout_seconds: float,
        rubric: Rubric = CHECKLIST,
    ) -> None:
        super().__init__(url, timeout_seconds, key)
        self.identity = (rubric.version, "openai", without_password(url), model)
        self.rubric = rubric
        self.name = f"{model} at {without_password(url)}"
        self.model, self.key_variable = model, variable

    def _body(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        (candidate,) = candidates
        form = {"name": "verdict", "strict": True, "schema": self.rubric.answer_schema(candidate)}
        return {
            "model": self.model,
            "messages": self.rubric.messages(candidate),
            "response_format": {"type": "json_schema", "json_schema": form},
            "temperature": 0,
            "max_completion_tokens": self.rubric.max_tokens,
            "seed": SEED,
        }

    def _read(self, content: bytes, candidates: Sequence[Candidate]) -> list[Verdict]:
        try:
            choice = json.loads(content)["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            if not isinstance(text, str | None):
                raise TypeError(f"the content is {printable(repr(text))}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = printable(f"{type(error).__name__}: {error}")
            raise TryAgain(f"the server's answer is not a chat completion: {reason}") from None
        finish = choice.get("finish_reason")
        if refusal or finish == "content_filter":
            return [unparsable(f"refused by the judge: {refusal or 'content filter'}")]
        return [read_answer(text, finish, self.rubric, candidates[0])]

    def _mistake(self, status: int, words: str) -> UserError | None:
        if status in self.final:
            # What a server says of a key may hold the key, and is left out.
            said = "wants a key; name its variable"
            if self.key_variable:
                said = f"does not accept the key in ${self.key_variable}"
            return UserError(f"the judge {self.name} {said} (judge.api_key_env; HTTP {status})")
        if status == 404:
            where = f"see judge.url and judge.model (HTTP 404: {words})"
            return UserError(f"the judge {self.name} is not there; {where}")
        return None


class HandleBackend(Backend):
    """The application NAME of the Ray cluster that this process is part of."""

    def __init__(self, application: str, timeout_seconds: float) -> None:
        self.application = application
        url = f"app:{application}"
        super().__init__(("serve", url), f"application {url}", timeout_seconds)
        self._handle: Any = None

    async def _ask(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        import ray
        from ray import serve

        if not ray.is_initialized():
            url = f"judge.url=app:{self.application}"
            raise UserError(f"{url} needs a Ray cluster that this process is part of")
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(serve.get_app_handle, self.application)
            asked = [candidate_json(candidate) for candidate in candidates]
            reply: bytes = await self._handle.score.remote(asked)
        except UserError as error:
            # Ray gives it the stack trace for a text, and the original as its cause.
            cause = getattr(error, "cause", error)
            raise UserError(f"the judge {self.name} is set up wrongly: {cause}") from None
        except Exception as error:
            # A replica that died, back-pressure, no such application: Ray has a type for each.
            self._handle = None
            first_line = printable(str(error).partition("\n")[0])
            raise TryAgain(f"{type(error).__name__}: {first_line}") from None
        return read_verdicts(reply)


class LocalBackend(Backend):
    """The engine that comes with the run, a Ray actor of `rarl.rollout.chat`. Ray starts it anew
    if it is lost, and asks it again."""

    batch_size = 1
    kind = "engine"
    wants = "its context may be too short; see judge.log in the run's logs"

    def __init__(self, engine: Any, model: str, timeout_seconds: float, rubric: Rubric) -> None:
        super().__init__(("local", model), f"{model} of this run", timeout_seconds, rubric)
        self.engine = engine

    async def _ask(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        from ray.exceptions import RayError

        (candidate,) = candidates
        messages, form = self.rubric.messages(candidate), self.rubric.answer_schema(candidate)
        try:
            answer = await self.engine.answer.remote(messages, form, self.rubric.max_tokens, SEED)
        except RayError as error:
            raise TryAgain(f"the engine failed: {last_line(error)}") from None
        if answer.finish_reason == "refused":
            raise Refused(printable(answer.text))
        return [read_answer(answer.text, answer.finish_reason, self.rubric, candidate)]


def read_answer(
    text: str | None, finish_reason: str | None, rubric: Rubric, candidate: Candidate
) -> Verdict:
    """Returns the verdict that a model's answer holds."""
    if finish_reason == "length":
        return unparsable(f"the judge did not finish within {rubric.max_tokens} tokens")
    return unparsable("the judge said nothing") if text is None else rubric.read(text, candidate)


def cannot_see(judge: str, reason: str) -> UserError:
    advice = "set judge.image=false, or take a judge that sees"
    return UserError(f"judge.image=true, but the judge {judge} cannot see ({reason}); {advice}")


def read_verdicts(body: bytes) -> list[Verdict]:
    """Reads a ScoreReply. Raises TryAgain for anything else."""
    try:
        return ScoreReply.model_validate_json(body).verdicts
    except ValidationError:
        raise TryAgain("the answer holds no verdicts") from None


def said_in(response: httpx.Response) -> str:
    """Returns what a server says of an error, on one line: the `detail` of FastAPI, the `message`
    of OpenAI, else the whole text."""
    said = None
    with contextlib.suppress(ValueError):
        said = response.json()
    said = said.get("error", said) if isinstance(said, dict) else None
    if isinstance(said, dict):
        said = said.get("message", said.get("detail"))
    return printable(str(said or response.text))


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def retry_after(value: str | None) -> float | None:
    """Returns the seconds of a Retry-After header; judges do not use its other form, a date."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
