"""The first of two looks (`rarl/look.py`): the engine names a place, and what lies there is shown
as a second image when the question is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from rarl.look import LOOK_TOKENS, Corners, least_side, named_box, named_detail, shown_detail
from rarl.prompts import LOOK_LABELS
from rarl.replies.boxes import STYLES, family_of
from rarl.schema import Frame
from rarl.serving.images import data_urls, png_url, read_images, shown_size
from rarl.serving.questions import pose, turn_of
from rarl.serving.requests import NamedImage, Refusal

if TYPE_CHECKING:
    from rarl.serving.asking import AskedModel, Engines


@dataclass(frozen=True)
class Looked:
    """What the question is then asked with, `urls` behind their `labels`; what the client is `told`
    of the look (None: it named no place, and the question is asked of the whole image alone); and
    the tokens that it took."""

    urls: list[str]
    labels: Sequence[str]
    told: dict[str, Any] | None = None
    usage: dict[str, int] = field(default_factory=dict)


async def look(
    engines: Engines, model: AskedModel, question: str, options: list[str] | None, image: NamedImage
) -> Looked:
    """Asks greedily where to look. Raises Refusal."""
    processor, limits = engines.processor, engines.config.limits
    if limits.images < len(LOOK_LABELS):
        raise Refusal("invalid_value", "look", reason="this server shows one image at a time")

    def read() -> tuple[Image.Image, str]:
        (picture,) = read_images([image], limits, bare=True)
        (url,) = data_urls([image], [picture], processor.image_processor, model.max_pixels)
        return picture, url

    async with engines.decoding:
        picture, url = await asyncio.to_thread(read)
    style = family_of(processor)
    asked = pose(question, options, model.look, STYLES[style].asked)
    body = {
        "messages": [turn_of(asked.text, [""], [url])],
        "n": 1,
        "temperature": 0.0,
        "max_completion_tokens": min(LOOK_TOKENS, limits.completion_tokens),
    }
    (reply,) = [item async for item in engines.ask(model, body)]
    assert isinstance(reply, dict), "no stream was asked for"
    text, usage = reply["choices"][0]["message"]["content"] or "", reply.get("usage") or {}
    # Thousandths and shown pixels alike are read off the picture's own sides.
    width, height = shown_size(url)
    frame = Frame(style, picture.width, picture.height, width, height)
    detail = named_detail(text, frame, least_side(processor.image_processor))
    if detail is None:
        return Looked([url], [""], None, usage)

    def cut() -> str:
        pixels = shown_detail(picture, detail, (height, width), processor.image_processor)
        return png_url(pixels)

    async with engines.decoding:
        close = await asyncio.to_thread(cut)
    named = named_box(text, frame)
    assert named is not None, "a detail is around a box"
    box = {"label": named.label, **shares(named.corners, frame)}
    told = {"box": box, "detail": shares(detail, frame), "image": close}
    return Looked([url, close], LOOK_LABELS, told, usage)


def shares(corners: Corners | tuple[float, ...], frame: Frame) -> dict[str, float]:
    """Returns a place in shares of the image's sides."""
    x1, y1, x2, y2 = corners
    across, down = frame.width, frame.height
    return {"x1": x1 / across, "y1": y1 / down, "x2": x2 / across, "y2": y2 / down}
