"""A second look at a served model: what is refused, what is asked first, and what is shown then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from rarl.config import PromptsConfig
from rarl.data.images import decode_image
from rarl.data.prepared import prepare_example
from rarl.look import Looker
from rarl.prompts import as_turn, evaluation_prompts, looking_prompts
from rarl.schema import Example
from rarl.serving.asking import Engines
from rarl.serving.guard import Metrics
from rarl.serving.images import read_images
from rarl.serving.looking import Looked, look
from rarl.serving.requests import NamedImage
from rarl.serving.settings import ServiceConfig
from rarl.tiny.second_look import draw_examples
from tests.serving.door import LIMITS, api, post
from tests.serving.hostile_files import encoded, picture
from tests.serving.service import Service, answer_body

GOOD = encoded(picture())
NAMED = "<look>lesion(500,250),(518,268)</look>"


@pytest.fixture(scope="module")
def example() -> Example:
    return draw_examples(1, 0, "test")[0]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"images": [GOOD, GOOD]}, "the only image"),
        ({}, "the only image"),
        ({"image": GOOD, "boxes": True}, "does not ask for boxes"),
    ],
)
def test_what_cannot_be_looked_at_twice_is_refused(
    keys: dict[str, Any], says: str, model_path: str
) -> None:
    body = {"question": "Which?", "look": True} | keys
    error = asyncio.run(post(api(model_path), "/answer", body)).json()["error"]
    assert (error["param"], error["code"]) == ("look", "invalid_value")
    assert says in error["message"]
    assert error["message"].startswith("look: ")


def test_a_server_of_one_image_cannot_show_a_detail(model_path: str) -> None:
    app = api(model_path, limits=LIMITS.model_copy(update={"images": 1}))
    asked = {"question": "Which?", "look": True, "image": GOOD}
    error = asyncio.run(post(app, "/answer", asked)).json()["error"]
    assert error["param"] == "look" and "one image at a time" in error["message"]


class SaysSo:
    """In place of an engine's handle: it keeps what it is asked, and gives one reply."""

    def __init__(self, reply: str) -> None:
        self.reply, self.asked = reply, list[dict[str, Any]]()
        self.ask = self

    def options(self, **_: Any) -> SaysSo:
        return self

    async def remote(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(body)
        usage = {"prompt_tokens": 150, "completion_tokens": 20}
        yield {"choices": [{"message": {"content": self.reply}}], "usage": usage}


def looked(model_path: str, example: Example, reply: str) -> tuple[Looked, dict[str, Any]]:
    """What a look comes to when the engine says this, and what that was asked."""
    said = SaysSo(reply)
    config = ServiceConfig(model=model_path, name="base", prompt="plain", limits=LIMITS)
    engines = Engines(config, model_path, 16, said, Metrics())
    image = NamedImage("image", encoded(example.images[0]))
    asking = look(engines, engines.model(None), example.question, ["yes", "no"], image)
    found = asyncio.run(asking)
    [asked] = said.asked
    return found, asked


def test_it_looks_as_in_a_measurement(model_path: str, processor: Any, example: Example) -> None:
    """The same prompt, the same detail with the same pixels, and the places in shares."""
    found, asked = looked(model_path, example, NAMED)
    prompts = PromptsConfig(eval="plain")
    first = prepare_example(example, processor, looking_prompts(prompts))
    text = asked["messages"][0]["content"][-1]["text"]
    assert as_turn(processor, text, [""]) == first.prompt.text
    assert (asked["n"], asked["temperature"], asked["max_completion_tokens"]) == (1, 0.0, 64)
    looker = Looker(model_path, evaluation_prompts(prompts), 48, 512)
    detail = looker.following(first, NAMED)
    assert detail is not None
    again = looker.again(first, detail)
    named = [NamedImage("image", url) for url in found.urls]
    for shown, trained in zip(read_images(named, LIMITS), again.pixels, strict=True):
        assert np.array_equal(np.asarray(shown), trained)
    assert list(found.labels) == ["Whole image", "Detail"]
    assert found.told is not None and found.told["image"] == found.urls[1]
    assert found.told["box"] == {
        "label": "lesion",
        **{"x1": 0.5, "y1": 0.25, "x2": pytest.approx(0.518), "y2": pytest.approx(0.268)},
    }
    corners = detail.corners
    assert list(found.told["detail"].values()) == [one / 448 for one in corners]
    assert decode_image(example.images[0]).size == (448, 448)


@pytest.mark.parametrize("reply", ["<look>none</look>", "left", "<look>a(0,0),(0,0)</look>"])
def test_without_a_place_the_whole_is_asked_about(
    reply: str, model_path: str, example: Example
) -> None:
    found, _ = looked(model_path, example, reply)
    assert found.told is None and len(found.urls) == 1 and list(found.labels) == [""]


@pytest.mark.slow
def test_a_served_model_is_asked_twice(service: Service, example: Example) -> None:
    """This one has not learnt to name places: it answers what it answers at one look, and both
    turns are counted."""

    def ask(**keys: Any) -> Any:
        with service.http() as http:
            response = http.post("/answer", json=answer_body(example, samples=1, **keys))
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()

    once, twice = ask(), ask(look=True)
    assert "look" not in once and twice["look"] is None
    assert (twice["answer"], twice["thinking"]) == (once["answer"], once["thinking"])
    for kind in ("prompt", "completion"):
        assert twice["tokens"][kind] > once["tokens"][kind]
