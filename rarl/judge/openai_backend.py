"""Any server that speaks OpenAI's chat completions and can decode by a JSON schema: vLLM, Ray Serve
LLM, a hosted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from rarl.errors import UserError
from rarl.judge.backend import PLAIN, REFUSALS, TryAgain, retry_after, without_password
from rarl.judge.candidate import Candidate
from rarl.judge.messages import judge_messages
from rarl.judge.rubric import parse_verdict, printable, schema, unparsable
from rarl.schema import Verdict

# A checklist is 75 tokens and its reason some 30; with a tokenizer of near single bytes 345 in all.
MAX_TOKENS = 512
SEED = 0


class OpenAIBackend:
    """One candidate per request. `key` goes into the Authorization header and into no message."""

    batch_size = 1

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        key_variable: str | None,
        timeout_seconds: float,
    ) -> None:
        self.identity: tuple[str, ...] = ("openai", without_password(url), model)
        self.name = f"{model} at {without_password(url)}"
        self.model = model
        self.key_variable = key_variable
        self.timeout_seconds = timeout_seconds
        # the server has given a completion: address, model, key and request are right
        self._answered = False
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=key or "none", max_retries=0, timeout=timeout_seconds
        )

    async def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [await self._judge_one(candidate) for candidate in candidates]

    async def _judge_one(self, candidate: Candidate) -> Verdict:
        try:
            return read_completion(await self._complete(candidate))
        except openai.APIStatusError as error:
            if error.status_code not in REFUSALS:
                raise self._explained(error) from None
            await self._check_request()
            return unparsable(f"refused by the server: {message_of(error)}")

    async def _complete(self, candidate: Candidate) -> ChatCompletion:
        """Raises APIStatusError where the server said no, and TryAgain where it did not answer, or
        not sensibly."""
        request: Any = {
            "model": self.model,
            "messages": judge_messages(candidate),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema()},
            },
            "temperature": 0,
            "max_completion_tokens": MAX_TOKENS,
            "seed": SEED,
        }
        try:
            # The client's own timeout is per read: a server that drips a byte now and then would
            # never meet it.
            completion = await asyncio.wait_for(
                self._client.chat.completions.create(**request), timeout=self.timeout_seconds
            )
        except (TimeoutError, openai.APITimeoutError):
            raise TryAgain(f"no answer within {self.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise TryAgain(f"no connection: {error.__cause__ or error}") from None
        except (openai.APIResponseValidationError, json.JSONDecodeError):
            raise TryAgain("the server's answer is not JSON") from None
        if not is_whole(completion):
            raise TryAgain("the server's answer is not a chat completion")
        self._answered = True
        return completion

    async def _check_request(self) -> None:
        """Tells a refused candidate from a server that refuses all. Raises UserError for the
        latter."""
        if self._answered:
            return
        try:
            await self._complete(PLAIN)
        except openai.APIStatusError as error:
            if error.status_code in REFUSALS:
                raise UserError(
                    f"the judge {self.name} refuses every request: {message_of(error)}; it must support response_format"
                    " json_schema, temperature and max_completion_tokens"
                ) from None
            raise self._explained(error) from None

    def _explained(self, error: openai.APIStatusError) -> Exception:
        """A refused key as UserError, all else as TryAgain. What a server says of a key may hold
        it: left out."""
        if error.status_code in (401, 403):
            variable = (
                f"the key in ${self.key_variable}"
                if self.key_variable
                else "a key; name its variable"
            )
            verb = "does not accept" if self.key_variable else "wants"
            return UserError(
                f"the judge {self.name} {verb} {variable} (judge.api_key_env; HTTP {error.status_code})"
            )
        said = f"HTTP {error.status_code}: {message_of(error)}"
        mistake = None
        # Ray Serve answers 404 while an application is deployed: a mistake only if it never was
        # another answer.
        if error.status_code == 404 and not self._answered:
            mistake = UserError(
                f"the judge {self.name} is not there; see judge.url and judge.model ({said})"
            )
        return TryAgain(said, retry_after(error.response.headers.get("retry-after")), mistake)

    async def close(self) -> None:
        await self._client.close()


def is_whole(completion: Any) -> bool:
    """The client builds its objects from whatever a server sends, without a look at it."""
    if (
        not isinstance(completion, ChatCompletion)
        or not isinstance(completion.choices, list)
        or not completion.choices
    ):
        return False
    message = getattr(completion.choices[0], "message", None)
    return isinstance(message, ChatCompletionMessage) and isinstance(
        getattr(message, "content", None), str | None
    )


def read_completion(completion: ChatCompletion) -> Verdict:
    choice = completion.choices[0]
    refusal, finish = (
        getattr(choice.message, "refusal", None),
        getattr(choice, "finish_reason", None),
    )
    if refusal or finish == "content_filter":
        return unparsable(f"refused by the judge: {refusal or 'content filter'}")
    if finish == "length":
        return unparsable(f"the judge did not finish within {MAX_TOKENS} tokens")
    if choice.message.content is None:
        return unparsable("the judge said nothing")
    return parse_verdict(choice.message.content)


def message_of(error: openai.APIStatusError) -> str:
    """The server's words, on one line."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return printable(str(said or error.message))
