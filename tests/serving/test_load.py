"""Many clients at once, and an engine that is killed under them. bench/serving.py is the long
one."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving_load import Task, run_clients, with_expected

from rarl.schema import Example
from tests.serving.service import (
    Service,
    is_ready,
    kill_engine,
    messages,
)

pytestmark = pytest.mark.slow


def bodies(examples: list[Example]) -> list[dict[str, Any]]:
    """24 questions about as many pictures, each to one of three models."""
    models = ("base", "first", "second")
    return [
        {
            "model": models[number % 3],
            "messages": messages(example),
            "temperature": 0,
            "max_tokens": 24,
        }
        for number, example in enumerate(examples)
    ]


@pytest.fixture(scope="module")
def headers(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.key}"}


@pytest.fixture(scope="module")
def tasks(service: Service, headers: dict[str, str]) -> list[Task]:
    from rarl.tiny.dataset import draw_examples

    drawn = draw_examples("seen", 12, seed=6, split="test") + draw_examples(
        "unseen", 12, seed=6, split="test"
    )
    asked = with_expected(service.api, headers, bodies(drawn))
    assert len({task.expected for task in asked}) >= 8, (
        "or else a mixed-up reply would not be noticed"
    )
    return asked


def test_more_clients_than_allowed_wait_and_get_each_their_own_reply(
    service: Service, headers: dict[str, str], tasks: list[Task]
) -> None:
    """24 clients, of whom 16 may ask at once: the others are told to come back, and do."""
    run = run_clients(service.api, headers, tasks, clients=24, seconds=600, turns=3)
    outcome = asyncio.run(run)
    assert set(outcome.statuses) == {200, 429}
    assert outcome.statuses[200] == 24 * 3
    assert (outcome.wrong, outcome.lost, outcome.refused_without_retry_after) == (0, 0, 0)


def test_an_engine_of_one_thread_has_no_worker_beside_it(service: Service) -> None:
    """The two would spin while they wait for each other, on cores that the service needs."""
    (replica,) = service.processes("ServeReplica:inference:Engine")
    titles = [" ".join(one.cmdline()) for one in replica.children(recursive=True)]
    assert sum("EngineCore" in title for title in titles) == 1
    assert not any("Worker" in title for title in titles)


def test_an_engine_that_dies_loses_nothing_that_can_be_asked_again(
    service: Service, headers: dict[str, str], tasks: list[Task]
) -> None:
    """Whole replies are asked of the next engine, behind the client's back; only a stream that had
    begun ends with an error, and says so."""
    with ThreadPoolExecutor(2) as pool:
        run = run_clients(service.api, headers, tasks, clients=12, seconds=600, turns=4)
        load = pool.submit(asyncio.run, run)
        stream = pool.submit(stream_until_it_ends, service)
        time.sleep(1.5)
        kill_engine(service)
        outcome = load.result()
        last = stream.result()
    assert outcome.statuses == {200: 12 * 4}
    assert (outcome.wrong, outcome.lost) == (0, 0)
    assert last in ("[DONE]", "engine_died")
    assert is_ready(service)


def stream_until_it_ends(service: Service) -> str:
    """The last event's text, or its error's code."""
    example = [{"role": "user", "content": "Describe everything."}]
    body = {
        "model": "base",
        "messages": example,
        "max_tokens": 200,
        "temperature": 2,
        "stream": True,
        "n": 8,
    }
    last = ""
    with (
        service.http(timeout=600) as http,
        http.stream("POST", "/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        for line in response.iter_lines():
            last = line.removeprefix("data: ") or last
    return last if last == "[DONE]" else str(json.loads(last)["error"]["code"])
