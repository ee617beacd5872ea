"""Many clients at once, an engine that is killed under them, and the end of the service. bench/serving.py is the long
one."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_load import Task, run_clients, with_expected

from rarl.schema import Example
from tests.serving.service import (
    Service,
    answer_body,
    is_ready,
    kill_engine,
    messages,
    serving,
    write_run,
)

pytestmark = pytest.mark.slow


def bodies(examples: list[Example]) -> list[dict[str, Any]]:
    """24 questions about as many pictures, each to one of three models."""
    models = ("base", "first", "second")
    return [
        {"model": models[number % 3], "messages": messages(example), "temperature": 0, "max_tokens": 24}
        for number, example in enumerate(examples)
    ]


@pytest.fixture(scope="module")
def headers(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.key}"}


@pytest.fixture(scope="module")
def tasks(service: Service, headers: dict[str, str]) -> list[Task]:
    from rarl.tiny.dataset import draw_examples

    drawn = draw_examples("seen", 12, seed=6, split="test") + draw_examples("unseen", 12, seed=6, split="test")
    asked = with_expected(service.api, headers, bodies(drawn))
    assert len({task.expected for task in asked}) >= 8, "or else a mixed-up reply would not be noticed"
    return asked


def test_sixty_four_clients_get_each_their_own_reply(
    service: Service, headers: dict[str, str], tasks: list[Task]
) -> None:
    outcome = asyncio.run(run_clients(service.api, headers, tasks, clients=64, seconds=600, turns=3))
    assert outcome.statuses == {200: 64 * 3}
    assert (outcome.wrong, outcome.lost) == (0, 0)


def test_more_than_allowed_are_told_to_wait_and_then_answered(
    service: Service, headers: dict[str, str], tasks: list[Task]
) -> None:
    outcome = asyncio.run(run_clients(service.api, headers, tasks, clients=160, seconds=600, turns=1))
    assert set(outcome.statuses) == {200, 429}
    assert outcome.statuses[200] == 160
    assert (outcome.wrong, outcome.lost, outcome.refused_without_retry_after) == (0, 0, 0)


def test_an_engine_that_dies_loses_nothing_that_can_be_asked_again(
    service: Service, headers: dict[str, str], tasks: list[Task]
) -> None:
    """Whole replies are asked of the next engine, behind the client's back; only a stream that had begun ends with an
    error, and says so."""
    with ThreadPoolExecutor(2) as pool:
        run = run_clients(service.api, headers, tasks, clients=16, seconds=600, turns=6)
        load = pool.submit(asyncio.run, run)
        stream = pool.submit(stream_until_it_ends, service)
        time.sleep(1.5)
        kill_engine(service)
        outcome = load.result()
        last = stream.result()
    assert outcome.statuses == {200: 16 * 6}
    assert (outcome.wrong, outcome.lost) == (0, 0)
    assert last in ("[DONE]", "engine_died")
    assert is_ready(service)


def stream_until_it_ends(service: Service) -> str:
    """The last event's text, or its error's code."""
    example = [{"role": "user", "content": "Describe everything."}]
    body = {"model": "base", "messages": example, "max_tokens": 200, "temperature": 2, "stream": True, "n": 8}
    last = ""
    with service.http(timeout=600) as http, http.stream("POST", "/chat/completions", json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            last = line.removeprefix("data: ") or last
    return last if last == "[DONE]" else str(json.loads(last)["error"]["code"])


def test_what_is_in_flight_is_finished_when_the_service_is_stopped(
    model_path: str, examples: list[Example], tmp_path: Path
) -> None:
    """SIGTERM while replies are being written: they are completed, and then the service ends with exit code 0."""
    run = write_run(tmp_path / "runs" / "only", model_path, seed=3)
    with serving(run, tmp_path / "log.txt") as service, ThreadPoolExecutor(8) as pool:
        started = threading.Event()

        def slow() -> int:
            with service.http(timeout=300) as http:
                body = {"model": "only", "messages": messages(examples[0]), "n": 8, "temperature": 2, "max_tokens": 400}
                with http.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
                    text = ""
                    for piece in response.iter_text():
                        started.set()
                        text += piece
                return int(text.rstrip().endswith("data: [DONE]"))

        asked = [pool.submit(slow) for _ in range(4)]
        assert started.wait(120)
        service.process.send_signal(signal.SIGTERM)
        assert [one.result() for one in asked] == [1, 1, 1, 1]
        assert service.process.wait(120) == 0
        with pytest.raises(httpx.ConnectError), service.http() as http:
            http.post("/answer", json=answer_body(examples[0]))
    log = (tmp_path / "log.txt").read_text()
    assert f"page {service.url}" in log and "Traceback" not in log
