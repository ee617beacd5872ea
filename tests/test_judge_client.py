"""The judge's client: what it asks, from whom and how often, and how it ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarl.config import JudgeConfig
from rarl.errors import UserError
from rarl.judge.backends import OpenAIBackend
from rarl.judge.cache import VerdictCache
from rarl.judge.candidate import image_uri
from rarl.judge.client import RemoteJudge, open_judge, read_key
from rarl.judge.judge import JudgeCounts
from rarl.judge.rubric import CHECKLIST
from rarl.schema import Verdict
from tests.judge_asking import Start, asking
from tests.judge_faults import candidates, checklist, completion, message_of, praise


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with asking(tmp_path) as begin:
        yield begin


def test_workers_share_the_requests_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    class Recorded(RemoteJudge):
        def __init__(self, *arguments: Any, concurrency: int, **options: Any) -> None:
            given.append(concurrency)
            super().__init__(*arguments, concurrency=concurrency, **options)

    monkeypatch.setattr("rarl.judge.client.RemoteJudge", Recorded)
    config = JudgeConfig(backend="openai", url="http://localhost:1/v1", model="m", concurrency=16)
    open_judge(config, None).close()
    for share in (1, 2, 3, 16, 17):
        open_judge(config, None, share=share).close()
    assert given == [16, 16, 8, 5, 1, 1]


def test_a_continued_run_with_more_workers_asks_nothing_twice(start: Start, tmp_path: Path) -> None:
    judge, server = start(cache=True)
    first = judge.score(candidates(6))
    backend = OpenAIBackend(judge.backend.identity[2], "m", None, None, 30)
    with RemoteJudge(backend, VerdictCache(tmp_path / "verdicts-1.sqlite")) as other:
        assert other.score(candidates(6)) == first
        assert other.counts().cached == 6 and len(server.log) == 6


def test_a_request_is_deterministic_and_constrained(start: Start) -> None:
    requests: list[dict[str, Any]] = []

    async def record(body: bytes) -> tuple[int, bytes]:
        requests.append(json.loads(body))
        return await praise(body)

    judge, server = start(record, key="secret")
    assert judge.score(candidates(1)) == [Verdict("scored", 3.0, 1.0, 1.0, 1.0, "")]
    (request,) = requests
    assert (request["temperature"], request["model"], request["seed"]) == (0, "m", 0)
    assert request["max_completion_tokens"] == 512
    assert request["response_format"]["json_schema"]["strict"] is True
    assert request["response_format"]["json_schema"]["schema"] == CHECKLIST.answer_schema(
        candidates(1)[0]
    )
    assert request["messages"] == CHECKLIST.messages(candidates(1)[0])
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_the_image_is_shown_as_openai_has_it(start: Start) -> None:
    requests: list[dict[str, Any]] = []

    async def record(body: bytes) -> tuple[int, bytes]:
        requests.append(json.loads(body))
        return await praise(body)

    judge, _ = start(record)
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = replace(candidates(1)[0], image=image_uri(pixels))
    assert judge.score([seen])[0].status == "scored"
    system, user = requests[0]["messages"]
    shown, asked = user["content"]
    assert "You see the image" in system["content"] and asked["text"].startswith("<data>")
    file = shown["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert (np.asarray(Image.open(BytesIO(b64decode(file)))) == pixels).all()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = JudgeConfig(
        backend="openai", url="http://localhost:1/v1", model="m", api_key_env="RARL_TEST_KEY"
    )
    monkeypatch.delenv("RARL_TEST_KEY", raising=False)
    with pytest.raises(UserError, match=r"RARL_TEST_KEY is not set"):
        open_judge(config, None)
    monkeypatch.setenv("RARL_TEST_KEY", "secret")
    open_judge(config, None).close()


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of secrets ends in a newline; an HTTP client shows the header that it cannot send."""
    monkeypatch.setenv("RARL_TEST_KEY", "sk-secret\n")
    assert read_key("RARL_TEST_KEY") == "sk-secret"
    for bad in ("sk-secret\nsk-other", "sk-sécret"):
        monkeypatch.setenv("RARL_TEST_KEY", bad)
        with pytest.raises(UserError, match="RARL_TEST_KEY holds characters") as caught:
            read_key("RARL_TEST_KEY")
        assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("openai", "localhost:8000/v1"),
        ("openai", "app:judge"),
        ("openai", "http://"),
        ("serve", "ftp://host/judge"),
        ("serve", "http://host:port/judge"),
        ("serve", "judge"),
    ],
)
def test_an_impossible_address_is_the_users_error(backend: Any, url: str) -> None:
    with pytest.raises(UserError, match=r"judge\.url: expected http"):
        open_judge(JudgeConfig(backend=backend, url=url, model="m"), None)


def test_passwords_in_addresses_are_not_shown() -> None:
    backend = OpenAIBackend("http://user:secret@host:1/v1", "m", None, None, 1)
    assert "secret" not in backend.name + "".join(backend.identity)


def test_submit_returns_while_the_judge_thinks(start: Start) -> None:
    gate = threading.Event()

    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.to_thread(gate.wait)
        return await praise(body)

    judge, server = start(answer, concurrency=4)
    futures = judge.submit(candidates(12))
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result().status for future in futures] == ["scored"] * 12
    assert server.most_at_once <= 4


def test_equal_candidates_in_flight_are_asked_once(start: Start) -> None:
    gate = threading.Event()

    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.to_thread(gate.wait)
        return await praise(body)

    judge, server = start(answer)
    futures = judge.submit(candidates(3) * 4) + judge.submit(candidates(3))
    futures[0].cancel()  # nobody else's
    gate.set()
    assert {future.result().status for future in futures[1:]} == {"scored"}
    assert len(server.log) == 3
    assert replace(judge.counts(), asked_seconds=0) == JudgeCounts(scored=15, shared=12, attempts=3)


def test_verdicts_come_back_in_order(start: Start) -> None:
    async def answer(body: bytes) -> tuple[int, bytes]:
        name = message_of(body).split("Spot ")[1].split(" ")[0]
        return 200, completion(json.dumps(checklist(name)))

    judge, _ = start(answer, concurrency=8)
    assert [verdict.reason for verdict in judge.score(candidates(60))] == [
        str(index) for index in range(60)
    ]


def test_the_cache_answers_the_second_time(start: Start) -> None:
    judge, server = start(cache=True, faults=["bad_verdict"], rate=0.5, seed=1)
    first = judge.score(candidates(20))
    assert {verdict.status for verdict in first} == {"scored", "unparsable"}
    assert judge.score(candidates(20)) == first
    assert len(server.log) == 20
    assert judge.counts().cached == 20 and judge.counts().done == 40


def test_a_slow_disk_keeps_no_answer_waiting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(body: bytes) -> tuple[int, bytes]:
        await asyncio.sleep(0.3 if "Spot 1 " in message_of(body) else 0)
        return await praise(body)

    judge, _ = start(answer, cache=True, timeout=1, retries=0)
    assert judge.cache is not None
    put = judge.cache.put

    def put_slowly(key: str, verdict: Verdict) -> None:
        time.sleep(1.5)
        put(key, verdict)

    monkeypatch.setattr(judge.cache, "put", put_slowly)
    assert {verdict.status for verdict in judge.score(candidates(2))} == {"scored"}
    assert len(judge.cache) == 2


def test_closing_gives_up_what_is_in_flight(start: Start) -> None:
    judge, _ = start(faults=["slow"], rate=1.0, slow_seconds=60, concurrency=2)
    futures = judge.submit(candidates(10))
    judge.close()
    judge.close()
    assert all(future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="closed"):
        judge.submit(candidates(1))


def test_a_mistake_of_ours_does_not_hang_the_run(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _ = start()

    async def fail(_: object) -> list[Verdict]:
        raise KeyError("bug")

    monkeypatch.setattr(judge.backend, "judge", fail)
    with pytest.raises(KeyError):
        judge.score(candidates(1))
