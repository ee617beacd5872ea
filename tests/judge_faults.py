"""Servers that misbehave on purpose, for the tests of the judge: real HTTP, real sockets, faults
drawn by a seed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from rarl.judge.candidate import Candidate
from rarl.judge.rubric import ITEMS

# Each is done by a real server in front of the real answer: `slow` keeps the client waiting beyond
# its patience, `500` and `429` say no, `garbage` is no JSON, `hollow` no completion, `bad_verdict`
# a completion that holds no verdict, `dropped` a connection that ends in the middle of the answer.
FAULTS = ("slow", "500", "429", "garbage", "hollow", "bad_verdict", "dropped")
Answer = Callable[[bytes], Awaitable[tuple[int, bytes]]]


@dataclass(frozen=True)
class Exchange:
    """One request as the server saw it: the candidate's message, the fault, and the status that was
    sent (0: none)."""

    asked: str
    fault: str | None
    status: int


@dataclass
class FaultyServer:
    """An ASGI application that gets its answers from `answer` and spoils a share of them."""

    answer: Answer
    faults: Sequence[str] = ()
    rate: float = 0.0
    seed: int = 0
    slow_seconds: float = 0.0
    most: int | None = None  # of answers that are spoilt; None: no bound
    log: list[Exchange] = field(default_factory=list)
    most_at_once: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    _at_work: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def draw(self) -> str | None:
        if self.most is not None and len(self.headers) > self.most:
            return None
        return self._random.choice(list(self.faults)) if self._random.random() < self.rate else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        fault = self.draw()  # on arrival: others arrive while the body is read
        body = await read_body(receive)
        request = object()
        self._at_work.add(request)
        self.most_at_once = max(self.most_at_once, len(self._at_work))
        responding = asyncio.create_task(self.respond(request, body, fault, send))
        # comes back when the client goes away, or has its answer
        leaving = asyncio.create_task(receive())
        await asyncio.wait((responding, leaving), return_when=asyncio.FIRST_COMPLETED)
        for task in (responding, leaving):
            task.cancel()
        self._at_work.discard(request)

    async def respond(self, request: object, body: bytes, fault: str | None, send: Any) -> None:
        asked = message_of(body)
        if fault in ("500", "429"):
            status, reply = int(fault), b'{"error": {"message": "out of order"}}'
        else:
            status, reply = await self.answer(body)
        if fault == "slow":
            await asyncio.sleep(self.slow_seconds)
        if fault == "garbage":
            status, reply = 200, b"<html>gateway</html>"
        if fault == "hollow":
            status, reply = (
                200,
                b'{"id": "x", "object": "chat.completion",'
                b' "choices": [{"message": {"content": [1]}}]}',
            )
        if fault == "bad_verdict" and status == 200:
            reply = spoil_verdict(reply)
        start = {"type": "http.response.start", "status": status}
        length = len(reply) + (100 if fault == "dropped" else 0)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ]
        if fault == "429":
            headers.append((b"retry-after", b"0.05"))
        self._at_work.discard(request)  # before the client has its answer, and asks the next thing
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": reply, "more_body": fault == "dropped"})
        # Only now, since a client that has gone away meanwhile has not been answered.
        self.log.append(Exchange(asked, fault, 0 if fault == "dropped" else status))
        # Where a connection is to be dropped, uvicorn sees an answer shorter than announced, and
        # closes it.


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def message_of(body: bytes) -> str:
    """What the judge was asked, of a chat completion's request."""
    try:
        return str(json.loads(body)["messages"][1]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return body.decode(errors="replace")


def spoil_verdict(reply: bytes) -> bytes:
    completion = json.loads(reply)
    message = completion["choices"][0]["message"]
    message["content"] = message["content"][:-1]
    return json.dumps(completion).encode()


def completion(
    content: str | None, finish_reason: str = "stop", refusal: str | None = None
) -> bytes:
    """A chat completion as OpenAI's servers write it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    reply = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }
    return json.dumps(reply).encode()


def checklist(reason: str = "", /, **changed: bool) -> dict[str, Any]:
    """All items true, but those that are given."""
    return {"reason": reason, **dict.fromkeys(ITEMS, True), **changed}


async def praise(_: bytes) -> tuple[int, bytes]:
    """The answer of a judge that likes everything."""
    return 200, completion(json.dumps(checklist()))


def forward_to(url: str) -> Answer:
    """The answer of the server at `url`, a chat completions address."""
    client: dict[str, httpx.AsyncClient] = {}

    async def answer(body: bytes) -> tuple[int, bytes]:
        own = client.setdefault("own", httpx.AsyncClient(timeout=300))  # of the loop that answers
        try:
            response = await own.post(
                url, content=body, headers={"content-type": "application/json"}
            )
        except httpx.TransportError as error:
            return 502, json.dumps({"error": {"message": type(error).__name__}}).encode()
        return response.status_code, response.content

    return answer


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Runs an ASGI application in a thread; yields its http address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=free_port(), log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def candidates(count: int, tag: str = "") -> list[Candidate]:
    """Distinct replies to one question."""
    thoughts = [
        f"Two lungs between ribs. Spot {tag}{index} in the left half." for index in range(count)
    ]
    return [
        Candidate(
            question="Where is the lesion?",
            options=("left", "right"),
            reference="left",
            rationale="Two lungs between ribs. A round spot in the left half.",
            reply=f"<think>{thought}</think><answer>left</answer>",
            thinking=thought,
            answer="left",
        )
        for thought in thoughts
    ]
