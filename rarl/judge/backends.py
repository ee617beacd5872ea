"""Backends of a judge: whom it asks about candidates for verdicts, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from rarl.errors import UserError, last_line
from rarl.judge.cache import verdict_key
from rarl.judge.candidate import Candidate, ScoreReply, candidate_json, image_uri
from rarl.judge.rubric import CHECKLIST, Rubric, printable, unparsable, unreachable
from rarl.judge.server import (
    Backend,
    ChatBackend,
    Refused,
    ServerBackend,
    Subject,
    TryAgain,
    read_completion,
    without_password,
)
from rarl.schema import Verdict

MISCONFIGURED = 424  # what RARL's application answers when its own backend is set up wrongly
# No server finds this too long or indecent: where it is refused, the request as such is wrong.
PLAIN = Candidate("Is there a lesion?", None, "no", None, "no", None, "no")
# A grey picture of 56 by 56 pixels, which every model that sees takes.
PLAIN_IMAGE = image_uri(np.full((56, 56, 3), 127, np.uint8))
SEED = 0


def cannot_see(judge: str, reason: str) -> UserError:
    advice = "set judge.image=false, or take a judge that sees"
    return UserError(f"judge.image=true, but the judge {judge} cannot see ({reason}); {advice}")


CANDIDATES = Subject[Candidate, Verdict](
    role="judge",
    address="judge.url",
    model="judge.model",
    key="judge.api_key_env",
    key_of=verdict_key,
    shows_image=lambda candidate: candidate.image is not None,
    plain=lambda image: replace(PLAIN, image=PLAIN_IMAGE) if image else PLAIN,
    refused=unparsable,
    unreachable=unreachable,
    cannot_see=cannot_see,
)


class HttpBackend(ServerBackend[Candidate, Verdict]):
    """RARL's application at a URL: `POST url/score`."""

    subject = CANDIDATES
    kind = "application"
    wants = "is it RARL's judge?"
    path = "/score"
    final = (MISCONFIGURED,)

    def __init__(self, url: str, timeout_seconds: float, key: str | None = None) -> None:
        shown = without_password(url)
        identity = (CHECKLIST.version, "serve", shown)
        super().__init__(identity, f"application at {shown}", timeout_seconds, url, key)

    def _body(self, questions: Sequence[Candidate]) -> dict[str, Any]:
        return {"candidates": [candidate_json(candidate) for candidate in questions]}

    def _read(self, content: bytes, questions: Sequence[Candidate]) -> list[Verdict]:
        return read_verdicts(content)

    def _mistake(self, status: int, words: str) -> UserError | None:
        if status == MISCONFIGURED:
            return UserError(f"the judge {self.name} is set up wrongly: {words}")
        if status >= 500 or status == 429:
            return None
        where = f"(HTTP {status} for /score); see judge.url"
        return UserError(f"the judge {self.name} is not there {where}")


class OpenAIBackend(ChatBackend[Candidate, Verdict]):
    """A judge behind chat completions that decode by a JSON schema."""

    subject = CANDIDATES
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
        super().__init__(rubric.version, url, model, key, variable, timeout_seconds)
        self.rubric = rubric

    def _body(self, questions: Sequence[Candidate]) -> dict[str, Any]:
        (candidate,) = questions
        form = {"name": "verdict", "strict": True, "schema": self.rubric.answer_schema(candidate)}
        return {
            "model": self.model,
            "messages": self.rubric.messages(candidate),
            "response_format": {"type": "json_schema", "json_schema": form},
            "temperature": 0,
            "max_completion_tokens": self.rubric.max_tokens,
            "seed": SEED,
        }

    def _read(self, content: bytes, questions: Sequence[Candidate]) -> list[Verdict]:
        said = read_completion(content)
        if said.refusal is not None:
            return [unparsable(f"refused by the judge: {said.refusal}")]
        return [read_answer(said.text, said.finish_reason, self.rubric, questions[0])]


class HandleBackend(Backend[Candidate, Verdict]):
    """The application NAME of the Ray cluster that this process is part of."""

    subject = CANDIDATES
    kind = "application"
    wants = "is it RARL's judge?"

    def __init__(self, application: str, timeout_seconds: float) -> None:
        self.application = application
        url = f"app:{application}"
        identity = (CHECKLIST.version, "serve", url)
        super().__init__(identity, f"application {url}", timeout_seconds)
        self._handle: Any = None

    async def _ask(self, questions: Sequence[Candidate]) -> list[Verdict]:
        import ray
        from ray import serve

        if not ray.is_initialized():
            url = f"judge.url=app:{self.application}"
            raise UserError(f"{url} needs a Ray cluster that this process is part of")
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(serve.get_app_handle, self.application)
            asked = [candidate_json(candidate) for candidate in questions]
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


class LocalBackend(Backend[Candidate, Verdict]):
    """The engine that comes with the run, a Ray actor of `rarl.rollout.chat`. Ray starts it anew
    if it is lost, and asks it again."""

    subject = CANDIDATES
    batch_size = 1
    kind = "engine"
    wants = "its context may be too short; see judge.log in the run's logs"

    def __init__(self, engine: Any, model: str, timeout_seconds: float, rubric: Rubric) -> None:
        identity = (rubric.version, "local", model)
        super().__init__(identity, f"{model} of this run", timeout_seconds)
        self.engine, self.rubric = engine, rubric

    async def _ask(self, questions: Sequence[Candidate]) -> list[Verdict]:
        from ray.exceptions import RayError

        (candidate,) = questions
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


def read_verdicts(body: bytes) -> list[Verdict]:
    """Reads a ScoreReply. Raises TryAgain for anything else."""
    try:
        return ScoreReply.model_validate_json(body).verdicts
    except ValidationError:
        raise TryAgain("the answer holds no verdicts") from None
