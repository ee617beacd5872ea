"""The boxes of a table's cell: written in it, or in the DICOM annotations that it names."""

from __future__ import annotations

from typing import Any

from rarl.prepare.annotations import Annotations
from rarl.prepare.files import Fault, ImageFile
from rarl.prepare.tables import read_list
from rarl.replies.boxes import MOST_BOXES
from rarl.schema import Box

FIELDS = ("label", "x1", "y1", "x2", "y2")
SHAPE = 'write [["label", x1, y1, x2, y2], …] in pixels'
LARGEST = 10**15  # of a corner that is read at all
SHOWN = 80  # characters of what cannot be read


def read_boxes(
    value: Any, images: tuple[ImageFile, ...], annotations: Annotations | None
) -> tuple[Box, ...] | None:
    """Returns the boxes of a list, or of a JSON text: of objects with label, x1, y1, x2 and y2, or
    of lists in that order. Any other text names a file of DICOM annotations of the row's only
    image, or a folder of such files. Raises Fault."""
    if value is None or value != value or value == "":
        return None
    if isinstance(value, str) and annotations is not None and not value.lstrip().startswith("["):
        if len(images) != 1:
            raise Fault(f"boxes are of one image, and there are {len(images)}")
        return annotations.boxes(value.strip(), images[0])
    if isinstance(value, str):
        value = read_list(value, "boxes")
    if not isinstance(value, list):
        raise Fault(f"boxes {shortened(value)} are not a list; {SHAPE}")
    if len(value) > MOST_BOXES:
        raise Fault(f"{len(value):,} boxes are more than {MOST_BOXES}")
    return tuple(map(read_box, value))


def read_box(value: Any) -> Box:
    held = list(map(value.get, FIELDS)) if isinstance(value, dict) else value
    if not isinstance(held, list) or len(held) != len(FIELDS):
        raise Fault(f"box {shortened(value)} cannot be read; {SHAPE}")
    label, *corners = held
    numbers = [one for one in corners if is_number(one)]
    if not isinstance(label, str) or len(numbers) < len(corners):
        raise Fault(f"box {shortened(value)} cannot be read; {SHAPE}")
    return Box(label.strip(), *map(float, numbers))


def is_number(value: Any) -> bool:
    """Returns whether it is a number that a float can hold; NaN is one, which the checks find."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < LARGEST


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
