"""`POST /v1/answer` of the running service: agreement, verdicts, streams, and replies without an
answer."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx
import pytest

from rarl.replies.tags import parse_reply
from rarl.schema import Example
from tests.serving.hostile_files import dicom, encoded
from tests.serving.service import Service, answer_body, write_run

pytestmark = pytest.mark.slow


def ask(service: Service, body: dict[str, Any]) -> Any:
    with service.http() as http:
        response = http.post("/answer", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_with_the_agreement_of_its_samples(
    service: Service, examples: list[Example]
) -> None:
    for example in examples[:6]:
        reply = ask(service, answer_body(example, samples=8, adapter="base", seed=1))
        assert set(reply) == {
            "thinking",
            "answer",
            "confidence",
            "samples",
            "adapter",
            "version",
            "tokens",
        }
        given = [one for one in reply["samples"] if one is not None]
        assert len(reply["samples"]) == 8 and reply["answer"] in given
        agreeing = sum(one.strip().lower() == reply["answer"].strip().lower() for one in given)
        assert reply["confidence"] >= agreeing / 8 > 0
        assert reply["confidence"] <= len(given) / 8
        assert reply["tokens"]["prompt"] > 16 and reply["tokens"]["completion"] > 8
        assert reply == ask(service, answer_body(example, samples=8, adapter="base", seed=1))


def test_one_sample_is_the_likeliest_reply(service: Service, examples: list[Example]) -> None:
    """And without an adapter's name the run that is served answers."""
    reply = ask(service, answer_body(examples[0], samples=1))
    assert reply["confidence"] is None and reply["adapter"] == "first"
    assert re.fullmatch(r"first@[0-9a-f]{16}", reply["version"])
    assert reply["samples"] == [reply["answer"]]
    assert reply == ask(service, answer_body(examples[0], samples=1, adapter="first"))


def test_the_judge_compares_with_a_reference(service: Service, examples: list[Example]) -> None:
    reply = ask(service, answer_body(examples[0], adapter="base"))
    right = ask(
        service, answer_body(examples[0], adapter="base", samples=1, reference=examples[0].answer)
    )["verdict"]
    assert right["status"] == "scored" and 0 <= right["correctness"] <= 3
    own = ask(service, answer_body(examples[0], adapter="base", samples=1))["answer"]
    praised = ask(service, answer_body(examples[0], adapter="base", samples=1, reference=own))[
        "verdict"
    ]
    blamed = ask(
        service, answer_body(examples[0], adapter="base", samples=1, reference="nothing like it")
    )["verdict"]
    assert praised["correctness"] > blamed["correctness"]
    assert "verdict" not in reply


def test_a_stream_tells_the_first_sample_and_then_the_result(
    service: Service, examples: list[Example]
) -> None:
    events = []
    with service.http() as http:
        body = answer_body(examples[1], samples=1, adapter="base", stream=True)
        with http.stream("POST", "/answer", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    text = "".join(event["text"] for event in events if event["type"] == "delta")
    assert len(events) > 5 and events[-1]["type"] == "result"
    parsed = parse_reply(text)
    assert (parsed.thinking, parsed.answer) == (events[-1]["thinking"], events[-1]["answer"])
    whole = ask(service, answer_body(examples[1], samples=1, adapter="base"))
    assert {key: value for key, value in events[-1].items() if key != "type"} == whole


def test_replies_without_an_answer_are_a_clear_error(
    service: Service, examples: list[Example], model_path: str
) -> None:
    """An adapter so strong that the model only babbles. In a stream the error is the last event."""
    write_run(service.adapters / "babble", model_path, seed=4, strength=1.0)
    body = answer_body(examples[0], adapter="babble", samples=4, seed=1)
    with service.http() as http:
        response = http.post("/answer", json=body)
        assert response.status_code == 422
        error = response.json()["error"]
        assert error["code"] == "no_answer"
        assert "none of 4 replies of 'babble' holds an <answer>" in error["message"]
        streamed = http.post("/answer", json=body | {"stream": True})
        last = [line for line in streamed.text.splitlines() if line][-1]
        assert (
            streamed.status_code == 200
            and json.loads(last.removeprefix("data: "))["error"]["code"] == "no_answer"
        )


def test_dicom_and_bare_base64_are_taken(service: Service, examples: list[Example]) -> None:
    bare = answer_body(examples[0])["image"].split(",")[1]
    same = ask(service, answer_body(examples[0], adapter="base", samples=1))
    assert (
        ask(service, answer_body(examples[0], adapter="base", samples=1) | {"image": bare}) == same
    )
    file = encoded(dicom(), "application/dicom")
    with service.http() as http:
        shown = http.post("/preview", json={"image": file})
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        reply = http.post(
            "/answer", json=answer_body(examples[0], adapter="base", samples=8) | {"image": file}
        )
        # what the model thinks of an 8 by 8 ramp is its own affair
        assert reply.status_code in (200, 422)


def test_health_and_readiness_need_no_key_and_figures_do(
    service: Service, examples: list[Example]
) -> None:
    assert httpx.get(f"{service.api}/health").json() == {"status": "ok"}
    assert httpx.get(f"{service.api}/ready", timeout=30).json() == {"status": "ready"}
    assert httpx.get(f"{service.api}/metrics", timeout=30).status_code == 401
    ask(service, answer_body(examples[0], adapter="base"))
    deadline = time.monotonic() + 60  # Ray's agents collect every ten seconds
    wanted = (
        "ray_rarl_requests_total{",
        'route="/answer"',
        'status="200"',
        "ray_rarl_completion_tokens_total",
    )
    with service.http() as http:
        while not all(part in (text := http.get("/metrics").text) for part in wanted):
            assert time.monotonic() < deadline, text[-3000:]
            time.sleep(2)
    assert "# TYPE ray_rarl_requests_total counter" in text
