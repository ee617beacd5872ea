"""One attempt to get answers from a server, whatever is asked: a judge's verdicts, a teacher's
explanations. What is asked and answered is a `Subject`; waiting and trying again is the client's
business (`rarl.judge.client`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from rarl.errors import UserError
from rarl.judge.rubric import printable

# HTTP: the content is wrong, and the same again would be refused again.
REFUSALS = (400, 413, 422)
BATCH = 8  # small, since a batch is as slow as its slowest question
Q = TypeVar("Q")  # what is asked
A = TypeVar("A")  # what is answered


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


@dataclass(frozen=True)
class Subject(Generic[Q, A]):
    """What is asked and answered, as far as asking has to know it. `role` is what messages call who
    is asked, `address`, `model` and `key` are what they call the settings. `key_of` is what a
    question is kept by, given who is asked. `plain` is a question that no server finds too long or
    indecent, with an image or without. `refused` and `unreachable` are the answers that stand for
    none, with the reason."""

    role: str
    address: str
    model: str
    key: str
    key_of: Callable[[Sequence[str], Q], str]
    shows_image: Callable[[Q], bool]
    plain: Callable[[bool], Q]
    refused: Callable[[str], A]
    unreachable: Callable[[str], A]
    cannot_see: Callable[[str, str], UserError]


class Backend(ABC, Generic[Q, A]):
    """`identity` is who is asked and in which words, a part of the cache's key; `name` is the same
    for people, without secrets; `batch_size` is the number of questions of one attempt."""

    subject: Subject[Q, A]
    batch_size = BATCH
    kind = "server"
    wants: str  # the advice where every request is refused

    def __init__(self, identity: tuple[str, ...], name: str, timeout_seconds: float) -> None:
        self.identity, self.name, self.timeout_seconds = identity, name, timeout_seconds
        # The server has given answers: address, model, key and request are right. `saw`: also about
        # a question with an image.
        self.answered = self.saw = False

    async def judge(self, questions: Sequence[Q]) -> list[A]:
        """Returns an answer per question, in order. A question that the server refuses is answered
        as `refused`, and costs the others of its batch nothing.

        Raises TryAgain, or UserError where only the user can mend it.
        """
        try:
            return await self._in_time(questions)
        except Refused as refused:
            reason = f"refused by the {self.kind}: {refused}"
        shown = self.subject.shows_image(questions[0])
        if not self.answered or (shown and not self.saw):
            await self._try_plain(shown)
        if len(questions) > 1:
            return [answer for one in questions for answer in await self.judge([one])]
        return [self.subject.refused(reason)]

    async def _try_plain(self, image: bool) -> None:
        """Raises UserError where even the plainest question is refused, or is refused as soon as it
        has an image."""
        try:
            await self._in_time([self.subject.plain(False)])
        except Refused as refused:
            every = f"the {self.subject.role} {self.name} refuses every request: {refused}"
            raise UserError(f"{every}; {self.wants}") from None
        if image:
            try:
                await self._in_time([self.subject.plain(True)])
            except Refused as refused:
                told = f"it refuses images: {refused}"
                raise self.subject.cannot_see(self.name, told) from None

    async def _in_time(self, questions: Sequence[Q]) -> list[A]:
        # An HTTP client's own timeout is per read: a server that drips a byte now and then would
        # never meet it.
        try:
            answers = await asyncio.wait_for(self._ask(questions), timeout=self.timeout_seconds)
        except TimeoutError:
            raise TryAgain(f"no answer within {self.timeout_seconds:g} s") from None
        if len(answers) != len(questions):
            raise TryAgain(f"{len(answers)} verdicts for {len(questions)} candidates")
        self.answered = True
        self.saw = self.saw or self.subject.shows_image(questions[0])
        return answers

    @abstractmethod
    async def _ask(self, questions: Sequence[Q]) -> list[A]:
        """Returns what the server answers. Raises TryAgain, UserError or Refused."""

    async def close(self) -> None:
        """Closes connections."""


class ServerBackend(Backend[Q, A]):
    """A server that is asked by POST with JSON."""

    path: str
    final: tuple[int, ...]  # mistakes that another attempt cannot change

    def __init__(
        self,
        identity: tuple[str, ...],
        name: str,
        timeout_seconds: float,
        url: str,
        key: str | None,
        **options: Any,  # of the HTTP client
    ) -> None:
        super().__init__(identity, name, timeout_seconds)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/") + self.path
        self._client = httpx.AsyncClient(
            timeout=None,
            headers=headers,
            limits=httpx.Limits(),
            **{"follow_redirects": True, **options},
        )

    async def _ask(self, questions: Sequence[Q]) -> list[A]:
        try:
            response = await self._client.post(self._url, json=self._body(questions))
        except httpx.RequestError as error:
            raise TryAgain(f"no connection: {str(error) or type(error).__name__}") from None
        status = response.status_code
        if status == 200:
            return self._read(response.content, questions)
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

    @abstractmethod
    def _body(self, questions: Sequence[Q]) -> dict[str, Any]:
        """Returns the body of a request."""

    @abstractmethod
    def _read(self, content: bytes, questions: Sequence[Q]) -> list[A]:
        """Returns the answers that a reply holds. Raises TryAgain where it holds none."""

    @abstractmethod
    def _mistake(self, status: int, words: str) -> UserError | None:
        """Returns what the user should be told of a status that looks like their mistake."""

    async def close(self) -> None:
        await self._client.aclose()


@dataclass(frozen=True)
class Completion:
    """What a server of chat completions says. `text` is None where it says nothing, `refusal` is
    why the model refuses, `tokens` are those of prompt and completion; None: not told."""

    text: str | None
    refusal: str | None
    finish_reason: str | None
    tokens: tuple[int, int] | None


class ChatBackend(ServerBackend[Q, A]):
    """Any server with OpenAI's chat completions (vLLM, Ray Serve LLM, a hosted model). `key` goes
    into the Authorization header and into no message; `variable` is the one that holds it."""

    batch_size = 1
    path = "/chat/completions"
    final = (401, 403)

    def __init__(
        self,
        wording: str,
        url: str,
        model: str,
        key: str | None,
        variable: str | None,
        timeout_seconds: float,
        **options: Any,
    ) -> None:
        shown = without_password(url)
        identity, name = (wording, "openai", shown, model), f"{model} at {shown}"
        super().__init__(identity, name, timeout_seconds, url, key, **options)
        self.model, self.key_variable = model, variable

    def _mistake(self, status: int, words: str) -> UserError | None:
        who, subject = f"the {self.subject.role} {self.name}", self.subject
        if status in self.final:
            # What a server says of a key may hold the key, and is left out.
            said = "wants a key; name its variable"
            if self.key_variable:
                said = f"does not accept the key in ${self.key_variable}"
            return UserError(f"{who} {said} ({subject.key}; HTTP {status})")
        if status == 404:
            where = f"see {subject.address} and {subject.model} (HTTP 404: {words})"
            return UserError(f"{who} is not there; {where}")
        return None


def read_completion(content: bytes) -> Completion:
    """Returns what a chat completion says. Raises TryAgain for anything else."""
    try:
        tree = json.loads(content)
        choice = tree["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        if not isinstance(text, str | None):
            raise TypeError(f"the content is {printable(repr(text))}")
        finish, usage = choice.get("finish_reason"), tree.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise TryAgain(f"the server's answer is not a chat completion: {reason}") from None
    refused = str(refusal or "content filter") if refusal or finish == "content_filter" else None
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int):
        return Completion(text, refused, finish, (prompt, completion))
    return Completion(text, refused, finish, None)


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
