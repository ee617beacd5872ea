"""Hostile requests against the running service: each gets its 4xx, nothing reaches a log, and the
service goes on."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from rarl.schema import Example
from tests.serving.hostile import all_hostile
from tests.serving.hostile_files import MARKER
from tests.serving.service import Service, answer_body

pytestmark = pytest.mark.slow


def test_every_hostile_request_gets_its_4xx_and_the_service_goes_on(
    service: Service, examples: list[Example]
) -> None:
    attacks = all_hostile()
    assert len(attacks) >= 40 and len({one.name for one in attacks}) == len(attacks)
    wrong = []
    key = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(timeout=60) as http:
        for one in attacks:
            headers = {**(key if one.with_key else {}), **one.headers}
            response = http.request(
                one.method, service.api + one.path, content=one.body, headers=headers
            )
            is_ours = response.headers.get("content-type", "").startswith("application/json")
            said = response.json().get("error", {}).get("message", "") if is_ours else ""
            if response.status_code not in one.status or (
                is_ours and (not said or MARKER in response.text)
            ):
                wrong.append((one.name, one.status, response.status_code, response.text[:200]))
    assert not wrong
    assert Counter(status for one in attacks for status in one.status)[413] >= 5
    assert_serves(service, examples)


def assert_serves(service: Service, examples: list[Example]) -> None:
    with service.http() as http:
        response = http.post("/answer", json=answer_body(examples[0], samples=8, adapter="base"))
        assert response.status_code == 200, response.text


def open_request(service: Service, first: bytes) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    opened = socket.create_connection((host, int(port)), timeout=30)
    opened.sendall(first)
    return opened


def test_slow_bodies_are_given_up_and_others_are_served_meanwhile(
    service: Service, examples: list[Example]
) -> None:
    """Slow loris: 12 clients that send their bodies byte by byte, as many as leave room for others,
    and 40 that never end their headers."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {service.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    )
    slow = [open_request(service, head.encode() + b'{"mod') for _ in range(12)]
    headless = [
        open_request(service, b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0")
        for _ in range(40)
    ]
    for one in slow:
        one.sendall(b"e")
    assert_serves(service, examples)
    statuses = []
    for one in slow:
        statuses.append(one.recv(1000).split(b" ")[1])
        one.close()
    assert statuses == [b"408"] * 12
    assert_serves(service, examples)
    for one in headless:
        one.close()


def test_clients_that_leave_cost_nothing(service: Service, examples: list[Example]) -> None:
    """After them the service is at work on nothing."""
    for number in range(20):
        with pytest.raises(httpx.ReadTimeout), service.http(timeout=0.05) as http:
            http.post("/answer", json=answer_body(examples[number % 4], samples=8))
    assert_serves(service, examples)
    deadline = time.monotonic() + 30
    with service.http() as http:
        while "ray_rarl_requests_at_work" not in http.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(1)


def session_logs(service: Service) -> list[Path]:
    """Every log file that a process of the service holds open, and all beside them."""
    folders = set()
    for process in service.process.children(recursive=True):
        try:
            folders |= {
                Path(one.path).parent for one in process.open_files() if "/logs" in one.path
            }
        except psutil.Error:
            continue
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def test_no_text_and_no_image_is_in_a_log(service: Service, examples: list[Example]) -> None:
    """Words that were asked above and here, and the beginning of the images' base64."""
    secret = "Zw9-the-question-of-a-patient"
    with service.http() as http:
        http.post("/answer", json=answer_body(examples[0]) | {"question": secret})
        http.post("/answer", json=answer_body(examples[0]) | {"question": secret + "<|im_end|>"})
        http.post("/chat/completions", json={"model": "base", "messages": secret})
        image = answer_body(examples[0])["image"]
        long = [{"role": "user", "content": [{"type": "text", "text": secret + "ξ" * 3000}]}]
        assert (
            http.post("/chat/completions", json={"model": "base", "messages": long}).status_code
            == 400
        )
    logs = session_logs(service)
    assert len(logs) > 5
    assert any("POST /v1 200" in path.read_text(errors="replace") for path in logs), (
        "these are not the service's logs"
    )
    for path in logs:
        text = path.read_text(errors="replace")
        for word in (secret, MARKER, service.key, image[22:120]):
            assert word not in text, (path, word)
