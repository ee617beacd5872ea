"""OpenAI's own Python client against the running service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from rarl.schema import Example
from tests.runs import REPOSITORY
from tests.serving.service import Service, image_url, messages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return service.client()


def test_the_models_are_the_base_and_the_runs(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "base" and {"first", "second"} <= set(listed)  # other tests publish more
    assert client.models.retrieve("second").id == "second"
    with pytest.raises(openai.NotFoundError, match="there is no model 'third'"):
        client.models.retrieve("third")


def test_a_chat_about_an_image(client: openai.OpenAI, examples: list[Example]) -> None:
    reply = client.chat.completions.create(
        model="first",
        messages=messages(examples[0]),
        temperature=0,
        max_tokens=60,
        logprobs=True,
        top_logprobs=2,
    )
    choice = reply.choices[0]
    assert reply.model == "first"
    assert (reply.system_fingerprint or "").startswith("first@")
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert (
        reply.usage is not None
        and choice.logprobs is not None
        and choice.logprobs.content is not None
    )
    assert reply.usage.completion_tokens == len(choice.logprobs.content)
    assert [len(one.top_logprobs) for one in choice.logprobs.content] == [
        2
    ] * reply.usage.completion_tokens
    again = client.chat.completions.create(
        model="first", messages=messages(examples[0]), temperature=0, max_tokens=60
    )
    assert again.choices[0].message.content == choice.message.content


def test_the_image_is_looked_at(client: openai.OpenAI, examples: list[Example]) -> None:
    """The same words about two pictures: the same tokens, of which the model thinks otherwise."""
    asked = "Which part of the body is this?"
    other = next(one for one in examples if one.organ != examples[0].organ)
    logprobs = []
    for example in (examples[0], other):
        reply: Any = client.chat.completions.create(
            model="base",
            messages=messages(example, asked),
            temperature=0,
            max_tokens=12,
            logprobs=True,
        )
        logprobs.append([one.logprob for one in reply.choices[0].logprobs.content])
    assert logprobs[0] != logprobs[1]


def test_streaming_gives_the_same_reply_in_pieces(
    client: openai.OpenAI, examples: list[Example]
) -> None:
    asked: dict[str, Any] = {
        "model": "second",
        "messages": messages(examples[1]),
        "temperature": 0,
        "max_completion_tokens": 60,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 5
    assert {chunk.model for chunk in chunks} == {"second"}
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    assert chunks[-1].usage == whole.usage


def test_several_replies(client: openai.OpenAI, examples: list[Example]) -> None:
    reply = client.chat.completions.create(
        model="base", messages=messages(examples[2]), n=6, temperature=1.5, max_tokens=40, seed=3
    )
    assert sorted(choice.index for choice in reply.choices) == list(range(6))
    assert len({choice.message.content for choice in reply.choices}) > 1
    streamed = client.chat.completions.create(
        model="base",
        messages=messages(examples[2]),
        n=3,
        temperature=1.5,
        max_tokens=40,
        stream=True,
    )
    assert {choice.index for chunk in streamed for choice in chunk.choices} == {0, 1, 2}


@pytest.mark.parametrize("model", ["base", "first"])
def test_a_json_schema_is_kept_to(
    client: openai.OpenAI, examples: list[Example], model: str
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "organ": {"enum": ["chest", "brain", "knee"]},
            "lesion": {"type": "boolean"},
        },
        "required": ["organ", "lesion"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=model,
        messages=messages(examples[0]),
        max_tokens=60,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "finding", "schema": schema, "strict": True},
        },
    )
    held = json.loads(reply.choices[0].message.content or "")
    assert set(held) == {"organ", "lesion"} and held["organ"] in ("chest", "brain", "knee")
    assert isinstance(held["lesion"], bool)


def test_an_adapter_is_chosen_by_its_name(client: openai.OpenAI, examples: list[Example]) -> None:
    def logprobs(model: str) -> list[float]:
        reply: Any = client.chat.completions.create(
            model=model, messages=messages(examples[3]), temperature=0, max_tokens=20, logprobs=True
        )
        return [one.logprob for one in reply.choices[0].logprobs.content]

    base, first, second = logprobs("base"), logprobs("first"), logprobs("second")
    assert base != first != second != base
    assert (logprobs("base"), logprobs("first")) == (base, first)


def calls(language: str) -> list[str]:
    """The calls of docs/serving.md."""
    text = (REPOSITORY / "docs/serving.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    start = {"python": "import base64", "": "curl "}[language]
    return [body for kind, body in blocks if kind == language and body.startswith(start)]


@pytest.mark.parametrize(("language", "program"), [("python", sys.executable), ("", "bash")])
def test_the_calls_of_the_docs_are_answered(
    service: Service, examples: list[Example], tmp_path: Path, language: str, program: str
) -> None:
    (tmp_path / "image.png").write_bytes(examples[0].images[0])
    found = calls(language)
    assert len(found) == (1 if language == "python" else 2)
    for call in found:
        call = call.replace("http://127.0.0.1:8000", service.url).replace("demo-0", "first")
        done = subprocess.run(
            [program, "-c", call],
            cwd=tmp_path,
            env={**os.environ, "RARL_API_KEY": service.key},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        if language == "python":
            assert done.stdout.strip()
        else:
            assert {"choices", "answer"} & set(json.loads(done.stdout)), done.stdout


def test_errors_are_the_clients_own(
    service: Service, client: openai.OpenAI, examples: list[Example]
) -> None:
    def ask(asking: openai.OpenAI = client, **keys: Any) -> Any:
        return asking.chat.completions.create(
            **{"model": "base", "messages": messages(examples[0]), **keys}
        )

    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="third")
    assert (missing.value.code, missing.value.param, missing.value.status_code) == (
        "model_not_found",
        "model",
        404,
    )
    with pytest.raises(openai.BadRequestError, match="at most 200 tokens"):
        ask(max_tokens=201)
    with pytest.raises(openai.BadRequestError, match="at most 8 replies"):
        ask(n=9)
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported here"):
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    with pytest.raises(openai.BadRequestError, match="no address is fetched"):
        far = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        ask(messages=[{"role": "user", "content": [far]}])
    with pytest.raises(openai.AuthenticationError, match="send the API key"):
        ask(service.client().with_options(api_key="wrong"))
    with pytest.raises(openai.BadRequestError, match=r"17 images, and .* may have 16"):
        many = [{"type": "image_url", "image_url": {"url": image_url(examples[0])}}] * 17
        ask(messages=[{"role": "user", "content": many}])
