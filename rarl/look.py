"""A second look: the model names a place first, what lies there is cut from the image's file and
shown beside the whole image, as large as that, and the question is asked again.

After CARE (arXiv 2603.01607), which gives a reader crops of what another model has segmented. Here
one model does both, and is asked twice: for a box, in reply to the family of prompts `look`, and
then as ever, with two images. Two controls show the same amount of another place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarl.config import Config
from rarl.data.images import decode_image, fit_image
from rarl.data.prepared import assemble, require_room
from rarl.data.stream import load_processor
from rarl.prompts import PromptPlan, evaluation_prompts, trains_looks, with_detail
from rarl.replies.boxes import read_boxes
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Box, Detail, Frame, PreparedExample

LOOK_TOKENS = 64  # enough for a box; a longer reply is cut, and names none
MARGIN = 0.5  # of the box's longer side, that is shown around it
# Where the detail is taken from: what the model named, a place drawn by lot, or the other half.
Aim = Literal["own", "random", "opposite"]
Corners = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the image file


def detail_around(named: Sequence[float], width: int, height: int, least: int) -> Corners | None:
    """Returns the part of an image of this size that shows a box with its margin, `least` pixels
    wide and high at least, as far as the image goes; None for a box that is not in the image."""
    x1, y1, x2, y2 = named
    if not all(map(math.isfinite, named)):
        return None
    x1, x2, y1, y2 = max(x1, 0.0), min(x2, width), max(y1, 0.0), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        return None
    margin = MARGIN * max(x2 - x1, y2 - y1)
    left, right = span(x1 - margin, x2 + margin, width, least)
    top, bottom = span(y1 - margin, y2 + margin, height, least)
    return left, top, right, bottom


def span(start: float, end: float, side: int, least: int) -> tuple[int, int]:
    """Returns whole pixels from `start` to `end`, `least` at least, moved to lie within a side of
    so many."""
    length = min(side, max(least, math.ceil(end) - math.floor(start)))
    first = round((start + end - length) / 2)
    first = min(max(first, 0), side - length)
    return first, first + length


def elsewhere(detail: Corners, width: int, aim: Aim, height: int, seed: str) -> Corners:
    """Returns a part of the same size: mirrored about the middle, or drawn by lot, a function of
    the text `seed`."""
    x1, y1, x2, y2 = detail
    if aim == "opposite":
        return width - x2, y1, width - x1, y2
    if aim == "random":
        rng = np.random.default_rng([*seed.encode()])
        left = int(rng.integers(width - (x2 - x1) + 1))
        top = int(rng.integers(height - (y2 - y1) + 1))
        return left, top, left + x2 - x1, top + y2 - y1
    return detail


def shown_detail(
    whole: Image.Image, detail: Corners, shown: tuple[int, int], image_processor: Any
) -> NDArray[np.uint8]:
    """Returns the detail of an image that is itself shown at this (height, width), at about as many
    pixels, (height, width, 3): what is smaller in the file is enlarged, since a model sees what is
    small against its patches badly."""
    part, area = whole.crop(detail), shown[0] * shown[1]
    times = math.sqrt(area / (part.width * part.height))
    if times > 1:
        width, height = (max(1, round(times * side)) for side in part.size)
        part = part.resize((width, height), Image.Resampling.BICUBIC)
    return fit_image(part, image_processor, area)


def least_side(image_processor: Any) -> int:
    """Returns the side of the smallest square that the processor shows as it is."""
    return math.isqrt(int(image_processor.size["shortest_edge"]) - 1) + 1


def named_box(text: str, frame: Frame) -> Box | None:
    """Returns the first box that a reply to `look` names; None where it names none."""
    found = read_boxes(parse_reply(text, "look").answer, frame)
    return found[0] if found else None


def named_detail(text: str, frame: Frame, least: int) -> Corners | None:
    """Returns what is to be shown closely after a reply to `look`: around the box that it names;
    None where it names none."""
    named = named_box(text, frame)
    if named is None:
        return None
    return detail_around(named.corners, frame.width, frame.height, least)


@dataclass(frozen=True)
class Looker:
    """How looks are followed: `plan` asks the question again, with a reply of at most
    `reply_tokens`. `max_model_length` bounds prompt and reply."""

    model_path: str
    plan: PromptPlan
    reply_tokens: int
    max_model_length: int
    aim: Aim = "own"
    seed: int = 0

    @cached_property
    def processor(self) -> Any:
        """The model's processor, loaded when it is first needed."""
        return load_processor(self.model_path)

    def following(self, first: PreparedExample, text: str) -> Detail | None:
        """Returns what of the image is shown after this reply to a look."""
        frame = first.prompt.frame
        assert frame is not None, "a look is asked with a frame"
        found = named_detail(text, frame, least_side(self.processor.image_processor))
        if found is None:
            return None
        seed = f"{self.seed}/{first.example.id}"
        found = elsewhere(found, frame.width, self.aim, frame.height, seed)
        said = len(self.processor.tokenizer(text).input_ids) + 1  # the end of the turn
        return Detail(*found, look_tokens=len(first.prompt_token_ids) + said)

    def again(self, first: PreparedExample, detail: Detail | None) -> PreparedExample:
        """Returns the question once more, with the detail beside the whole image where there is
        one. Raises UserError where both do not fit the context."""
        asked, pixels = replace(first.example, images=(b"",)), first.pixels
        if detail is not None:
            assert first.original is not None, "a look keeps the image's file"
            whole, (height, width, _) = decode_image(first.original), first.pixels[0].shape
            rule, asked = self.processor.image_processor, with_detail(first.example)
            pixels = (*pixels, shown_detail(whole, detail.corners, (height, width), rule))
        prompt = self.plan(self.processor, asked)
        # The example stays what it was: what is shown besides is told by `detail`.
        prepared = assemble(first.example, prompt, pixels, self.processor)
        require_room(prepared, self.reply_tokens, self.max_model_length)
        return replace(prepared, detail=detail)

    def look(
        self, pool: SamplerPool, prompts: Sequence[PreparedExample], use_adapter: bool
    ) -> list[PreparedExample]:
        """Asks greedily where to look, and returns the prompts that follow, in order; those that
        ask for no look stay as they are."""
        asked = [one for one in prompts if one.prompt.form == "look"]
        requests = [SampleRequest(one.prompt.text, one.pixels) for one in asked]
        groups = pool.generate(requests, SamplingSettings(1, 0.0, LOOK_TOKENS), use_adapter)
        said = iter([rollout.text for (rollout,) in groups])
        return [
            self.again(one, self.following(one, next(said))) if one.prompt.form == "look" else one
            for one in prompts
        ]


def training_looker(config: Config, model_path: str) -> Looker | None:
    """Returns who follows the looks of training, which is paid for the answers after them; None
    where training asks for none."""
    if not trains_looks(config.prompts):
        return None
    rollout = config.rollout
    return Looker(
        model_path,
        evaluation_prompts(config.prompts),
        rollout.max_completion_tokens,
        rollout.max_model_length,
    )
