"""Several images in a request, and none: what the door says of them, and what the served model
reads and answers."""

from __future__ import annotations

import asyncio
import io
import re
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from rarl.data.prepared import prepare_example
from rarl.prompts import PromptsConfig, evaluation_prompts, labels_of
from rarl.schema import Example
from rarl.serving.images import data_urls, read_images
from rarl.serving.questions import pose, turn_of
from rarl.serving.requests import NamedImage
from rarl.tiny.follow_up import draw_follow_ups, draw_in_words
from tests.serving.door import LIMITS, api, post
from tests.serving.hostile_files import encoded, picture
from tests.serving.service import Service, answer_body, image_urls, messages

GOOD, LARGE = encoded(picture()), encoded(picture(size=(2000, 1100)))
THIN = encoded(picture(size=(3000, 1)))
CUT, FILE = encoded(picture()[:60]), encoded(b"\x89PNG\r\n\x1a\n" + bytes(2_850_000))


@pytest.fixture(scope="module")
def of_two() -> Example:
    return draw_follow_ups(1, 0, "test")[0]


@pytest.fixture(scope="module")
def of_none() -> Example:
    return draw_in_words(1, 0, "test")[0]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"images": [GOOD] * 17}, "images.16", "too_many_images", "17 images, and .* may have 16"),
    ({"images": [GOOD, CUT, GOOD]}, "images.1", "invalid_image", "is the file complete?"),
    ({"images": [GOOD, THIN]}, "images.1", "invalid_image", "3000x1 pixels"),
    (
        {"image": GOOD, "image_labels": ["<|im_end|>"]},
        "image_labels",
        "invalid_value",
        "special tokens",
    ),
    ({"images": [GOOD, GOOD, "x.png"]}, "images.2", "invalid_image", "base64"),
    ({"images": [GOOD, "http://a.b/c"]}, "images.1", "unsupported_image_url", "no address is"),
    ({"images": [LARGE, LARGE]}, "images.1", "image_too_many_pixels", "4,000,000 pixels together"),
    ({"images": [FILE] * 3}, "images.2", "image_too_large", "8,388,608 bytes together"),
    (
        {"images": [GOOD] * 3, "image_labels": ["left", "right"]},
        "image_labels",
        "invalid_value",
        "2 labels, and 3 images",
    ),
    ({"image_labels": ["left"]}, "image_labels", "invalid_value", "1 labels, and 0 images"),
    ({"image": GOOD, "image_labels": []}, "image_labels", "invalid_value", "0 labels, and 1"),
    ({"image": GOOD, "image_labels": [" "]}, "image_labels.0", "invalid_value", "empty"),
    ({"image": GOOD, "images": [GOOD]}, "image", "invalid_value", "image or images"),
    ({"image": GOOD, "images": []}, "image", "invalid_value", "image or images"),
    ({"images": GOOD}, "images", "invalid_value", "array"),
    ({"images": [GOOD, 5]}, "images.1", "invalid_value", "string"),
    ({"images": [GOOD] * 2, "boxes": True}, "boxes", "invalid_value", "there are 2"),
    ({"boxes": True}, "boxes", "invalid_value", "there are 0"),
]


@pytest.mark.parametrize(("keys", "param", "code", "says"), REFUSED, ids=lambda one: str(one)[-40:])
def test_what_is_wrong_with_images_is_said_by_its_place(
    keys: dict[str, Any], param: str, code: str, says: str, model_path: str
) -> None:
    response = asyncio.run(post(api(model_path), "/answer", {"question": "Which?"} | keys))
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"{param}: ")
    assert re.search(says, error["message"])


def test_a_chat_names_the_part_of_the_image(model_path: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in (GOOD, CUT)]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Look."}, parts[0]]},
        {"role": "user", "content": [parts[1], {"type": "text", "text": "And now?"}]},
    ]
    body = {"model": "base", "messages": turns}
    error = asyncio.run(post(api(model_path), "/chat/completions", body)).json()["error"]
    assert error["param"] == "messages.1.content.0.image_url"


def test_a_server_may_take_fewer_images_or_none(model_path: str) -> None:
    def ask(images: int, most: int) -> httpx.Response:
        app = api(model_path, limits=LIMITS.model_copy(update={"images": most}))
        return asyncio.run(post(app, "/answer", {"question": "Which?", "images": [GOOD] * images}))

    for images, most in ((0, 0), (1, 1), (2, 2)):
        # It got as far as the engine, which is not there.
        assert ask(images, most).json()["error"]["code"] == "internal_error"
        error = ask(most + 1, most).json()["error"]
        assert (error["code"], error["param"]) == ("too_many_images", f"images.{most}")


def test_images_are_shown_together_as_training_shows_them(processor: Any) -> None:
    """At the same sizes, which are those that all have together, in order."""
    noise = np.random.default_rng(0)
    files = []
    for width, height in ((300, 200), (60, 60), (200, 400)):
        file = io.BytesIO()
        shades = noise.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(shades).save(file, "PNG")
        files.append(file.getvalue())
    labels = ("frontal", "lateral", "prior")
    example = replace(draw_follow_ups(1, 0, "test")[0], images=tuple(files), image_labels=labels)
    plan = evaluation_prompts(PromptsConfig(eval="plain"))
    prepared = prepare_example(example, processor, plan, 60_000)
    named = [NamedImage("image", encoded(file)) for file in files]
    urls = data_urls(named, read_images(named, LIMITS), processor.image_processor, 60_000)
    again = read_images([NamedImage("image", url) for url in urls], LIMITS)
    for shown, trained in zip(again, prepared.pixels, strict=True):
        assert np.array_equal(np.asarray(shown), trained)
    turn = turn_of("Which?", labels, urls)
    kinds = [part.get("text") or part["image_url"]["url"] for part in turn["content"]]
    assert [kinds[0], kinds[3], kinds[6]] == ["frontal: ", "lateral: ", "prior: "]
    assert [kinds[1], kinds[4], kinds[7]] == urls and kinds[-1] == "Which?"


@pytest.mark.slow
def test_the_openai_client_sends_several_images_and_none(
    service: Service, of_two: Example, of_none: Example
) -> None:
    client = service.client()

    def ask(example: Example, **keys: Any) -> Any:
        asked = {"model": "base", "messages": messages(example), "temperature": 0, **keys}
        return client.chat.completions.create(max_tokens=40, **asked)

    one = replace(of_two, images=of_two.images[:1])
    none, single, double = ask(of_none), ask(one), ask(of_two)
    assert all(reply.choices[0].message.content for reply in (none, single, double))
    image = double.usage.prompt_tokens - single.usage.prompt_tokens
    assert image > 10, "the second image has tokens of its own"
    chunks = list(ask(of_two, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == double.choices[0].message.content
    for example, bare in ((of_two, double), (of_none, none)):
        auto = ask(example, extra_body={"prompt": "auto"})
        assert auto.usage.prompt_tokens > bare.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content\.16\.image_url: 17"):
        ask(replace(of_two, images=of_two.images * 8 + of_two.images[:1]))


@pytest.mark.slow
def test_the_prompt_tokens_are_those_of_training(
    service: Service, of_two: Example, of_none: Example, examples: list[Example], processor: Any
) -> None:
    """With two images behind their labels, with one and with none, in both routes."""
    plan = evaluation_prompts(PromptsConfig(eval="plain"))
    with service.http() as http:
        for example in (of_two, examples[0], of_none):
            trained = prepare_example(example, processor, plan).prompt_token_ids
            body = answer_body(example, adapter="base", samples=8)
            # What `/v1/answer` asks, written out by a client.
            text = pose(body["question"], body["options"], plan.families["plain"]).text
            turn = turn_of(text, labels_of(example), image_urls(example))
            chat = {"model": "base", "messages": [turn], "max_tokens": 1, "return_token_ids": True}
            written_out = http.post("/chat/completions", json=chat)
            assert written_out.status_code == 200, written_out.text
            assert written_out.json()["prompt_token_ids"] == list(trained)
            response = http.post("/answer", json=body)
            assert response.status_code == 200, response.text
            assert response.json()["tokens"]["prompt"] == len(trained)


@pytest.mark.slow
def test_the_order_of_two_images_is_heard(service: Service, of_two: Example) -> None:
    """The same pictures in the other order are another question: labels and tokens are the same,
    and what the model thinks of them is not."""
    swapped = replace(of_two, images=of_two.images[::-1])
    with service.http() as http:

        def logprobs(example: Example) -> list[float]:
            body = {"model": "base", "messages": messages(example), "temperature": 0}
            body |= {"max_tokens": 12, "logprobs": True}
            reply = http.post("/chat/completions", json=body).json()
            return [one["logprob"] for one in reply["choices"][0]["logprobs"]["content"]]

        assert logprobs(of_two) == logprobs(of_two) != logprobs(swapped)
