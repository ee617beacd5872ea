"""The door without an engine behind it: what is refused never gets as far."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from rarl.errors import UserError
from rarl.schema import Example
from rarl.serving.app import build_api
from rarl.serving.asking import Engines
from rarl.serving.guard import Metrics, merge
from rarl.serving.settings import (
    SHORTEST,
    ApiKey,
    Limits,
    ServiceConfig,
    is_loopback,
    read_api_key,
    read_settings,
    require_key_for,
)
from tests.serving.hostile import MARKER, all_hostile
from tests.serving.service import KEY, answer_body

LIMITS = Limits(body_seconds=0.3, completion_tokens=200, image_pixels=4_000_000)


class NoEngine:
    """In place of an engine's handle: whoever uses it has passed everything that should have
    stopped them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("the engine was reached")


def api(model_path: str, key: str | None = KEY, **keys: Any) -> Any:
    config = ServiceConfig(
        **{"model": model_path, "name": "base", "prompt": "plain", "limits": LIMITS, **keys}
    )
    metrics = Metrics()
    engines = Engines(config, model_path, 16, NoEngine(), metrics)
    return build_api(engines, ApiKey(key) if key else None, metrics)


def client(
    app: Any, host: str = "http://127.0.0.1:8000", caller: str = "127.0.0.1"
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(caller, 5000)), base_url=host, timeout=60
    )


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
        app = api(model_path, limits=LIMITS.model_copy(update={"concurrent": 2}))

        async def drip() -> Any:
            yield b"{"
            await asyncio.sleep(0.2)
            yield b"}"

        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        async with client(app) as http:
            # httpx would read the body whole before it calls the application: hence the scope by
            # hand.
            busy = [asyncio.create_task(slow(app, drip)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = [await http.post("/answer", content=b"{}", headers=headers) for _ in range(2)]
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


def test_an_address_that_others_reach_needs_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RARL_API_KEY", raising=False)
    config = read_settings({"model": "m", "name": "base"})
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        require_key_for(host, None, config)
    for host in (
        "0.0.0.0",
        "::",
        "192.168.1.7",
        "10.0.0.1",
        "example.org",
        "127.0.0.1.example.org",
    ):
        with pytest.raises(
            UserError,
            match=f"{host}: other machines reach this address.*RARL_API_KEY.*open_without_key",
        ):
            require_key_for(host, read_api_key(config), config)
        require_key_for(host, ApiKey("k" * SHORTEST), config)
        require_key_for(host, None, config.model_copy(update={"open_without_key": True}))
    assert is_loopback("::ffff:127.0.0.1") and not is_loopback("::ffff:10.0.0.1")


def test_keys_come_from_the_variable_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("from-a-file-0123456789\n")
    monkeypatch.setenv("RARL_API_KEY", "from-the-variable-0123456789")
    by_variable = read_api_key(read_settings({"model": "m", "name": "base"}))
    by_file = read_api_key(read_settings({"model": "m", "name": "base", "api_key_file": str(file)}))
    assert by_variable is not None and by_file is not None
    assert by_variable.matches("Bearer from-the-variable-0123456789")
    assert by_file.matches("bearer from-a-file-0123456789")
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer from-a-file-012345678",
        "Bearer from-a-file-0123456789\xff",
        "Basic from-a-file-0123456789",
    ):
        assert not by_file.matches(wrong)
    for text, message in (
        ("short", "at least 16 characters"),
        ("with a space in the middle", "printable ASCII"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_api_key(read_settings({"model": "m", "name": "base", "api_key_file": str(file)}))
        assert text not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_api_key(
            read_settings({"model": "m", "name": "base", "api_key_file": str(tmp_path / "none")})
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"limit": 3}, "unknown key 'limit'"),
        ({"name": "a/b"}, "name"),
        ({"samples": 9}, r"samples=9 is above limits\.replies=8"),
        ({"default": "first"}, "adapters names no folder"),
        ({"limits": {"concurrent": 0}}, r"limits\.concurrent"),
    ],
)
def test_wrong_settings_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({"model": "m", "name": "base", **keys})


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
