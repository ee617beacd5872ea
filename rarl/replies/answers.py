"""Whether an answer is right, by the type of its question: words, boxes or a report."""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.boxes import read_boxes
from rarl.replies.grading import is_correct
from rarl.replies.observations import agreement
from rarl.replies.overlap import all_found
from rarl.schema import Box, Frame


def is_right(
    given: str | None,
    reference: str,
    answer_type: str,
    *,
    options: Sequence[str] | None = None,
    also_right: Sequence[str] | None = None,
    boxes: Sequence[Box] | None = None,
    frame: Frame | None = None,
) -> bool:
    """Whether an answer is exactly right. Boxes are, if each true one is found with an overlap of
    one half and there is no other; a report is, if it says the same of all observations, where the
    reference tells of any; all else is by `is_correct`. Without a frame, as what no model has
    written is, boxes are compared as text."""
    if answer_type == "report" and given is not None:
        same = agreement(given, reference)
        if same is not None:
            return same == 1
    if answer_type == "boxes" and frame is not None:
        return all_found(None if given is None else read_boxes(given, frame), boxes or ())
    return is_correct(given, reference, options, also_right)
