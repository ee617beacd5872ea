"""Boxes in replies, in the way of each model family, and what makes a box in data unusable.

Qwen2-VL writes thousandths of the image's sides, from 0 to 1000, between marks of its own.
Qwen2.5-VL writes JSON with pixels of the image as it was resized for it. Qwen3-VL writes the same
JSON, but with thousandths again (QwenLM/Qwen3-VL, issues 721, 866 and 1486). Where a side has more
than 2000 pixels, half a thousandth is more than a pixel, and no place is known better.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rarl.replies.words import is_blank
from rarl.schema import Box, Frame

MOST_BOXES = 100  # about one image, in data and read of a reply
THOUSAND = 1000
OVER_EDGE = 2.0  # pixels
NOTHING = "none"  # Qwen2-VL has no word of its own for it
# Special tokens, which are gone from a reply's text where it was decoded without them.
REF, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
BOX, BOX_END = "<|box_start|>", "<|box_end|>"
MARKS = re.compile(r"<\|(?:object_ref|box)_(?:start|end)\|>")
# At most six digits: nothing that is larger is a place.
POINT = r"\(\s*(-?\d{1,6})\s*,\s*(-?\d{1,6})\s*\)"
CORNERS = re.compile(rf"{POINT}\s*,\s*{POINT}")
FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*(?:```\s*)?", re.DOTALL)
# A name, not a sentence: the label stands in prompts, in targets and on pages.
LONGEST_LABEL, MOST_WORDS = 80, 10
NO_NAME = re.compile(r"[^\w\s\-/',()+%&.]|\.(?!\d)|[\n\r\t]|^[\s,]|,\s*$")
INSTRUCTION = re.compile(
    r"\b(ignore|disregard|forget|override|obey|answer|reply|respond|pretend|instructions?|"
    r"assistant|you|your|please|always|never|must)\b",
    re.IGNORECASE,
)
Corners = tuple[float, float, float, float]


def boxes_fault(boxes: Sequence[Box], width: int, height: int) -> str | None:
    """Returns what is wrong with the boxes of an image of this size, or None."""
    if len(boxes) > MOST_BOXES:
        return f"{len(boxes):,} boxes are more than {MOST_BOXES}"
    faults = (box_fault(box, width, height) for box in boxes)
    return next((fault for fault in faults if fault), None)


def boxes_in_images_fault(
    boxes: Sequence[Box] | None, sizes: Sequence[tuple[int, int]]
) -> str | None:
    """Returns what is wrong with the boxes of a question whose images have these (height, width),
    or None. Of several images nobody could tell which one a box is in."""
    if not boxes:
        return None
    if len(sizes) != 1:
        return f"boxes are of one image, and there are {len(sizes)}"
    ((height, width),) = sizes
    return boxes_fault(boxes, width, height)


def box_fault(box: Box, width: int, height: int) -> str | None:
    label, corners = box.label.strip(), box.corners
    told = f"box '{label[:LONGEST_LABEL]}' ({', '.join(f'{one:g}' for one in corners)})"
    if is_blank(label):
        return f"{told} has no label"
    if len(label) > LONGEST_LABEL or len(label.split()) > MOST_WORDS:
        return f"{told} has a label of more than {MOST_WORDS} words; name what is in the box"
    if NO_NAME.search(label) or INSTRUCTION.search(label) or re.search(POINT, label):
        return f"{told} has a label that is no name of a finding; name what is in the box"
    if not all(math.isfinite(one) for one in corners):
        return f"{told} has a corner that is not a number"
    if box.x2 <= box.x1 or box.y2 <= box.y1:
        return f"{told} has no area: x2 must be above x1, and y2 above y1"
    if min(corners) < 0 or box.x2 > width or box.y2 > height:
        return f"{told} reaches outside of its image, which has {width}x{height} pixels"
    return None


def cut_at_edges(boxes: Sequence[Box], width: int, height: int) -> tuple[Box, ...]:
    """Returns the boxes of an image of this size with corners that lie up to OVER_EDGE pixels
    outside, as annotation programs leave them, moved to its edge."""

    def moved(place: float, most: int) -> float:
        inside = min(max(place, 0.0), float(most))
        return inside if abs(place - inside) <= OVER_EDGE else place

    return tuple(
        Box(
            one.label,
            moved(one.x1, width),
            moved(one.y1, height),
            moved(one.x2, width),
            moved(one.y2, height),
        )
        for one in boxes
    )


def boxes_text(boxes: Sequence[Box]) -> str:
    """Returns the boxes as a person reads them, in pixels of the image: the `answer` of a row."""
    named = (f"{one.label} ({one.x1:g}, {one.y1:g}, {one.x2:g}, {one.y2:g})" for one in boxes)
    return "; ".join(named) or NOTHING


@dataclass(frozen=True)
class Style:
    """How a family writes boxes: whether in thousandths of the sides or in pixels of the image as
    it is shown; the functions that write and read (label, corners) in that unit; and what a prompt
    says of it. `read` returns None for a text that is none of it."""

    in_thousandths: bool
    write: Callable[[Sequence[tuple[str, list[int]]]], str]
    read: Callable[[str], list[tuple[str, Corners]] | None]
    asked: str


def write_marked(boxes: Sequence[tuple[str, list[int]]]) -> str:
    """Returns boxes as Qwen2-VL writes them; "none" where there are none."""
    parts = [
        f"{REF}{label}{REF_END}{BOX}({x1},{y1}),({x2},{y2}){BOX_END}"
        for label, (x1, y1, x2, y2) in boxes
    ]
    return "".join(parts) or NOTHING


def read_marked(text: str) -> list[tuple[str, Corners]] | None:
    """Reads what `write_marked` writes, also without the marks. A box without a label of its own
    has that of the box before it."""
    text = MARKS.sub("", text).strip()
    if text.lower().strip(".") == NOTHING:
        return []
    found: list[tuple[str, Corners]] = []
    end, label = 0, ""
    for match in CORNERS.finditer(text):
        own = text[end : match.start()].strip(" \n,;:")
        label, end = own or label, match.end()
        x1, y1, x2, y2 = map(float, match.groups())
        found.append((label, (x1, y1, x2, y2)))
        if len(found) > MOST_BOXES:
            break
    return found or None


def write_json(boxes: Sequence[tuple[str, list[int]]]) -> str:
    """Returns boxes as Qwen2.5-VL and Qwen3-VL write them: a JSON list."""
    return json.dumps(
        [{"bbox_2d": corners, "label": label} for label, corners in boxes], ensure_ascii=False
    )


def read_json(text: str) -> list[tuple[str, Corners]] | None:
    """Reads what `write_json` writes, also between the fences of Markdown. What has another shape
    is None, as a whole."""
    fenced = FENCE.fullmatch(text)
    try:
        held = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    held = [held] if isinstance(held, dict) else held
    if not isinstance(held, list):
        return None
    found = [as_labelled(one) for one in held]
    return None if None in found else [one for one in found if one is not None]


def as_labelled(held: Any) -> tuple[str, Corners] | None:
    corners = held.get("bbox_2d") if isinstance(held, dict) else None
    if not isinstance(corners, list) or len(corners) != 4:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in corners):
        return None
    # An integer of a thousand digits is no float; neither is a place.
    x1, y1, x2, y2 = (float(one) if abs(one) < 1e6 else math.nan for one in corners)
    label = held.get("label", "")
    return (label if isinstance(label, str) else ""), (x1, y1, x2, y2)


JSON_SHAPE = '[{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]'
STYLES = {
    "qwen2_vl": Style(
        True,
        write_marked,
        read_marked,
        "Answer with boxes as name(x1,y1),(x2,y2), from 0 to 1000, or none.",
    ),
    "qwen2_5_vl": Style(
        False,
        write_json,
        read_json,
        f"Answer with boxes as JSON in pixels, {JSON_SHAPE}, or [].",
    ),
    "qwen3_vl": Style(
        True,
        write_json,
        read_json,
        f"Answer with boxes as JSON from 0 to 1000, {JSON_SHAPE}, or [].",
    ),
}


def family_of(processor: Any) -> str:
    """Returns the family of a model by the class of its processor, such as Qwen2_5_VLProcessor;
    what is not known writes as Qwen2-VL does."""
    name = type(processor).__name__.removesuffix("Processor").lower().replace("_", "")
    known = {family.replace("_", ""): family for family in STYLES}
    return known.get(name, "qwen2_vl")


def units(frame: Frame) -> tuple[float, float]:
    """Returns how many pixels of the image file a unit of the family is, across and down."""
    if STYLES[frame.family].in_thousandths:
        return frame.width / THOUSAND, frame.height / THOUSAND
    return frame.width / frame.shown_width, frame.height / frame.shown_height


def whole_sides(first: float, last: float, most: int) -> tuple[int, int]:
    """Returns a box's two places along a side as whole numbers from 0 to `most`, rounded, or
    outward where rounding would leave no area between them."""
    if round(first) < round(last):
        return round(first), round(last)
    low = min(max(math.floor(first), 0), most - 1)
    return low, max(min(math.ceil(last), most), low + 1)


def write_boxes(boxes: Sequence[Box], frame: Frame) -> str:
    """Returns the answer that names these boxes, as the frame's family writes it."""
    across, down = units(frame)
    wide = THOUSAND if STYLES[frame.family].in_thousandths else frame.shown_width
    high = THOUSAND if STYLES[frame.family].in_thousandths else frame.shown_height
    placed = []
    for one in boxes:
        x1, x2 = whole_sides(one.x1 / across, one.x2 / across, wide)
        y1, y2 = whole_sides(one.y1 / down, one.y2 / down, high)
        placed.append((one.label, [x1, y1, x2, y2]))
    return STYLES[frame.family].write(placed)


def read_boxes(text: str | None, frame: Frame) -> tuple[Box, ...] | None:
    """Returns the boxes that an answer names, in pixels of the image file, in their order; an empty
    tuple for the word or list for nothing. Returns None for what is no boxes, and for more than
    MOST_BOXES. Corners may lie anywhere, or be NaN: the matching gives such boxes nothing."""
    found = None if text is None else STYLES[frame.family].read(text)
    if found is None or len(found) > MOST_BOXES:
        return None
    across, down = units(frame)
    return tuple(
        Box(label, x1 * across, y1 * down, x2 * across, y2 * down)
        for label, (x1, y1, x2, y2) in found
    )
