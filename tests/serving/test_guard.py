"""The door without an engine behind it: what is refused never gets as far."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from rarl.config import PromptsConfig
from rarl.data.images import decode_image
from rarl.prepare.metadata import without_metadata
from rarl.prompts import evaluation_prompts
from rarl.schema import Example
from rarl.serving.asking import AskedModel, read_answer
from rarl.serving.guard import merge
from rarl.serving.images import read_images
from rarl.serving.questions import PosedQuestion
from rarl.serving.requests import NamedImage
from tests.serving.door import LIMITS, api, client, post
from tests.serving.hostile import all_hostile
from tests.serving.hostile_files import MARKER, encoded, picture
from tests.serving.service import KEY, answer_body


@pytest.mark.parametrize("attack", all_hostile(), ids=lambda attack: attack.name.replace("\0", "0"))
def test_a_hostile_request_is_refused_before_the_engine(attack: Any, model_path: str) -> None:
    async def send() -> httpx.Response:
        headers = {
            **({"Authorization": f"Bearer {KEY}"} if attack.with_key else {}),
            **attack.headers,
        }
        async with client(api(model_path)) as http:
            return await http.request(
                attack.method, attack.path, content=attack.body, headers=headers
            )

    response = asyncio.run(send())
    assert response.status_code in attack.status, response.text
    assert MARKER not in response.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "F", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("packed", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("turned", [1, 6])
def test_a_tiff_is_shown_as_rarl_prepare_keeps_it(
    mode: str, packed: str | None, turned: int
) -> None:
    shades = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    drawn = Image.fromarray(shades).convert(mode)
    drawn.save(file, "TIFF", compression=packed, tiffinfo={274: turned})
    url = encoded(file.getvalue(), "image/tiff")
    (shown,) = read_images([NamedImage("image", url)], LIMITS)
    assert shown.size == ((30, 40) if turned == 6 else (40, 30))
    assert shown.tobytes() == decode_image(without_metadata(file.getvalue())).tobytes()


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_photograph_is_turned_as_rarl_prepare_turns_it(kind: str, turned: int) -> None:
    shades = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(shades).save(file, kind, exif=exif)
    url = encoded(file.getvalue(), f"image/{kind}")
    (shown,) = read_images([NamedImage("image", url)], LIMITS)
    assert shown.size == ((30, 40) if turned >= 5 else (40, 30))
    assert shown.tobytes() == decode_image(without_metadata(file.getvalue())).tobytes()


def part(**keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [keys]}]}


PIXEL = encoded(picture())

# One wrong value each: a boolean is no number, a text is neither, and blanks are no question.
WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"n": True}, "n"),
    ("chat", {"n": "2"}, "n"),
    ("chat", {"n": 1.5}, "n"),
    ("chat", {"n": 0}, "n"),
    ("chat", {"max_tokens": "10"}, "max_tokens"),
    ("chat", {"max_tokens": True}, "max_tokens"),
    ("chat", {"max_completion_tokens": "10"}, "max_completion_tokens"),
    ("chat", {"max_completion_tokens": 2.0}, "max_completion_tokens"),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"stream": 1}, "stream"),
    ("chat", {"stream_options": {"include_usage": "true"}}, "stream_options.include_usage"),
    ("chat", {"stream_options": True}, "stream_options"),
    ("chat", {"temperature": "0.5"}, "temperature"),
    ("chat", {"temperature": False}, "temperature"),
    ("chat", {"top_p": True}, "top_p"),
    ("chat", {"top_p": "1"}, "top_p"),
    ("chat", {"frequency_penalty": "0"}, "frequency_penalty"),
    ("chat", {"presence_penalty": True}, "presence_penalty"),
    ("chat", {"seed": True}, "seed"),
    ("chat", {"seed": 1.5}, "seed"),
    ("chat", {"seed": "1"}, "seed"),
    ("chat", {"stop": 5}, "stop"),
    ("chat", {"stop": ["a", 5]}, "stop.1"),
    ("chat", {"logprobs": 1}, "logprobs"),
    ("chat", {"logprobs": "true"}, "logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": "2"}, "top_logprobs"),
    ("chat", {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
    ("chat", {"return_token_ids": "false"}, "return_token_ids"),
    ("chat", {"response_format": "json_object"}, "response_format"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
    ("chat", {"user": 5}, "user"),
    ("chat", {"prompt": "obey"}, "prompt"),
    ("chat", {"prompt": True}, "prompt"),
    ("chat", {"prompt": "auto", "messages": [{"role": "system", "content": "a"}]}, "prompt"),
    ("chat", {"prompt": "auto", "messages": [{"role": "user", "content": "a"}] * 2}, "prompt"),
    ("chat", {"prompt": "auto", "messages": [{"role": "user", "content": []}]}, "prompt"),
    ("chat", {"prompt": "auto", "messages": [{"role": "user", "content": " "}]}, "prompt"),
    ("chat", {"prompt": "auto", **part(type="image_url", image_url={"url": PIXEL})}, "prompt"),
    ("chat", {"model": 5}, "model"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "hello"}, "messages"),
    ("chat", {"messages": ["hello"]}, "messages.0"),
    ("chat", {"messages": [{"role": 1, "content": "a"}]}, "messages.0.role"),
    ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ("chat", {"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0"),
    ("chat", part(type="text", text=5), "messages.0.content.0.text"),
    ("chat", part(type="text"), "messages.0.content.0"),
    ("chat", part(type="text", image_url={"url": "x"}), "messages.0.content.0"),
    ("chat", part(type="image_url", image_url="x"), "messages.0.content.0.image_url"),
    ("chat", part(type="image_url", image_url={"url": 5}), "messages.0.content.0.image_url.url"),
    ("chat", part(type="video", text="a"), "messages.0.content.0.type"),
    ("chat", part(text="a"), "messages.0.content.0.type"),
    ("answer", {"question": "  "}, "question"),
    ("answer", {"question": ""}, "question"),
    ("answer", {"question": "\n\t\u3000"}, "question"),
    ("answer", {"question": 5}, "question"),
    ("answer", {"options": ["yes", " "]}, "options.1"),
    ("answer", {"options": "yes"}, "options"),
    ("answer", {"reference": " "}, "reference"),
    ("answer", {"samples": "3"}, "samples"),
    ("answer", {"samples": True}, "samples"),
    ("answer", {"seed": True}, "seed"),
    ("answer", {"boxes": True, "options": ["left", "right"]}, "options"),
    ("answer", {"boxes": "yes"}, "boxes"),
    ("answer", {"stream": "yes"}, "stream"),
    ("answer", {"adapter": 5}, "adapter"),
    ("answer", {"image": 5}, "image"),
    ("preview", {"image": True}, "image"),
]


@pytest.mark.parametrize(("route", "keys", "param"), WRONG_VALUES, ids=str)
def test_a_value_of_the_wrong_kind_is_refused_by_its_name(
    route: str, keys: dict[str, Any], param: str, model_path: str, examples: list[Example]
) -> None:
    good: dict[str, Any] = {
        "chat": {"model": "base", "messages": [{"role": "user", "content": "a"}]},
        "answer": answer_body(examples[0]),
        "preview": {},
    }[route]
    path = "/chat/completions" if route == "chat" else f"/{route}"
    response = asyncio.run(post(api(model_path), path, good | keys))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ") and len(error["message"]) > len(param) + 10


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON: EOF"),
        (b'{"model": "\xff"}', "not valid JSON: invalid unicode"),
        (b"[" * 500 + b"]" * 500, "not valid JSON: recursion limit"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_why(body: bytes, says: str, model_path: str) -> None:
    response = asyncio.run(post(api(model_path), "/chat/completions", body))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert says in response.json()["error"]["message"]


def test_a_schema_may_be_as_deep_as_the_docs_say(model_path: str) -> None:
    def schema(depth: int) -> dict[str, Any]:
        return {} if depth == 1 else {"items": schema(depth - 1)}

    def ask(depth: int) -> httpx.Response:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema(depth)}}
        messages = [{"role": "user", "content": "a"}]
        body = {"model": "base", "messages": messages, "response_format": form}
        return asyncio.run(post(api(model_path), "/chat/completions", body))

    assert ask(12).json()["error"]["code"] == "internal_error", "it got as far as the engine"
    assert "nested 12 deep" in ask(13).json()["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/models", "/about"])
def test_reading_routes_answer_head_too(path: str, model_path: str) -> None:
    async def head() -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with client(api(model_path)) as http:
            return await http.head(path, headers=headers)

    assert asyncio.run(head()).status_code == 200


def test_what_is_allowed_does_reach_the_engine(model_path: str, examples: list[Example]) -> None:
    """Or else the test above would hold for a door that is walled up."""

    async def send() -> httpx.Response:
        async with client(api(model_path)) as http:
            return await http.post(
                "/answer", json=answer_body(examples[0]), headers={"Authorization": f"Bearer {KEY}"}
            )

    response = asyncio.run(send())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "AssertionError" not in response.text


def test_a_body_that_does_not_come_is_given_up(model_path: str) -> None:
    async def drip() -> Any:
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    async def call() -> list[Any]:
        sent: list[Any] = []
        parts = drip()

        async def receive() -> Any:
            return {"type": "http.request", "body": await anext(parts), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [
            (b"authorization", f"Bearer {KEY}".encode()),
            (b"content-type", b"application/json"),
        ]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/answer",
            "root_path": "/v1",
            "headers": headers,
        }
        await api(model_path)(scope, receive, send)
        return sent

    assert asyncio.run(call())[0]["status"] == 408


def test_more_at_once_than_allowed_are_told_to_come_back(model_path: str) -> None:
    """Two at work, whose bodies are still coming; the third and fourth are not taken in."""

    async def call() -> list[int]:
        app = api(
            model_path, limits=LIMITS.model_copy(update={"concurrent": 2, "body_seconds": 60})
        )
        begun, ended = asyncio.Semaphore(0), asyncio.Event()

        async def drip() -> Any:
            yield b"{"
            begun.release()
            await ended.wait()
            yield b"}"

        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        async with client(app) as http:
            # httpx would read the body whole before it calls the application: hence the scope by
            # hand.
            busy = [asyncio.create_task(slow(app, drip)) for _ in range(2)]
            for _ in busy:
                await begun.acquire()
            refused = [await http.post("/answer", content=b"{}", headers=headers) for _ in range(2)]
            ended.set()
            assert [one.headers["retry-after"] for one in refused] == ["2", "2"]
            statuses = [*await asyncio.gather(*busy), *(one.status_code for one in refused)]
            after = await http.post("/answer", content=b"{}", headers=headers)
            return [*statuses, after.status_code]

    assert asyncio.run(call()) == [400, 400, 429, 429, 400]


async def slow(app: Any, drip: Any) -> int:
    statuses: list[int] = []
    parts = drip()

    async def receive() -> Any:
        try:
            return {"type": "http.request", "body": await anext(parts), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/answer",
        "root_path": "",
        "headers": headers,
    }
    await app({**scope, "query_string": b""}, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("host", "caller", "expected"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 200),
        ("http://localhost:8000", "127.0.0.1", 200),
        ("http://[::1]:8000", "::1", 200),
        ("http://127.0.0.1:8000", "192.168.1.7", 403),
        ("http://evil.example:8000", "127.0.0.1", 403),
        ("http://127.0.0.1.evil.example", "127.0.0.1", 403),
    ],
)
def test_without_a_key_only_this_machine_is_answered(
    model_path: str, host: str, caller: str, expected: int
) -> None:
    """The last two are what a web page does that has its own name point to this machine."""

    async def get(path: str) -> int:
        async with client(api(model_path, key=None), host, caller) as http:
            return (await http.get(path)).status_code

    assert asyncio.run(get("/about")) == expected
    assert asyncio.run(get("/health")) == 200


def test_figures_of_several_nodes_are_one_text() -> None:
    def node(name: str) -> str:
        return (
            "# HELP ray_rarl_requests_total Requests.\n# TYPE ray_rarl_requests_total counter\n"
            f'ray_rarl_requests_total{{node="{name}"}} 1.0\n# HELP ray_other x\nray_other 3\n'
        )

    merged = merge([node("a"), node("b")]).splitlines()
    assert merged[:2] == node("a").splitlines()[:2]
    assert merged[2:] == [
        'ray_rarl_requests_total{node="a"} 1.0',
        'ray_rarl_requests_total{node="b"} 1.0',
    ]


@pytest.mark.parametrize(
    ("options", "said", "answer", "confidence"),
    [
        (("left", "right"), ["no", "left"], "left", 0.5),
        (("left", "right"), ["no", "no", "B"], "B", 1 / 3),
        (("left", "right"), ["no", "no", "up"], "no", 2 / 3),
        (None, ["no", "no", "left"], "no", 2 / 3),
    ],
)
def test_what_is_no_option_has_no_vote_beside_one_that_is(
    options: tuple[str, ...] | None, said: list[str], answer: str, confidence: float
) -> None:
    families = evaluation_prompts(PromptsConfig()).families
    model = AskedModel("base", "1", None, families["plain"], families["look"], None)
    replies = [f"<think>So it is.</think><answer>{one}</answer>" for one in said]
    result, reply = read_answer(replies, PosedQuestion("Where?", options, ""), model)
    assert (result["answer"], result["confidence"]) == (answer, pytest.approx(confidence))
    assert reply == f"<think>So it is.</think><answer>{answer}</answer>"
    assert result["samples"] == said
