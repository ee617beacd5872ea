"""`rarl serve RUN` in a process of its own: that it serves, and how it ends."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rarl.schema import Example
from tests.privacy import assert_private
from tests.serving.service import Command, answer_body, messages

pytestmark = [pytest.mark.slow, pytest.mark.engines, pytest.mark.whole]


def test_a_service_is_this_machines_alone(command: Command) -> None:
    command.wait_until_ready()
    assert_private(command.service.process)


def test_what_is_in_flight_is_finished_when_the_service_is_stopped(
    command: Command, examples: list[Example]
) -> None:
    """SIGTERM while replies are being written: they are completed, and then the service ends with
    exit code 0. The key is the one of the environment variable here."""
    command.wait_until_ready()
    service = command.service
    assert httpx.get(f"{service.api}/models").status_code == 401
    started, said_before = threading.Event(), len(command.log.read_text())

    def slow() -> int:
        with service.http(timeout=300) as http:
            body = {
                "model": "first",
                "messages": messages(examples[0]),
                "n": 8,
                "temperature": 2,
                "max_tokens": 200,
            }
            with http.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
                text = ""
                for piece in response.iter_text():
                    started.set()
                    text += piece
            return int(text.rstrip().endswith("data: [DONE]"))

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(slow) for _ in range(4)]
        assert started.wait(120)
        command.process.send_signal(signal.SIGTERM)
        assert [one.result() for one in asked] == [1, 1, 1, 1]
    assert command.process.wait(120) == 0
    with pytest.raises(httpx.ConnectError), service.http() as http:
        http.post("/answer", json=answer_body(examples[0]))
    log = command.log.read_text()
    assert f"page {service.url}" in log
    # Nothing of Ray's, vLLM's or Triton's beside it.
    begun = [line.split()[0] for line in log[:said_before].splitlines()]
    assert begun == ["starting", "page", "OpenAI-compatible"]
    assert log[said_before:].splitlines() == ["answering what is in flight, then stopping"]
