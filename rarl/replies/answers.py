"""Whether an answer is right, and whether two say the same, by the type of their question: words,
boxes or a report."""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.boxes import read_boxes
from rarl.replies.grading import is_correct, same_answer
from rarl.replies.observations import agreement, labels_of
from rarl.replies.overlap import all_found
from rarl.replies.words import same_words
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


def answers_alike(
    first: str,
    second: str,
    reference: str,
    answer_type: str,
    *,
    options: Sequence[str] | None = None,
    frame: Frame | None = None,
) -> bool:
    """Whether two answers to a question say the same, right or wrong. Boxes do, if each of the one
    overlaps one of the other by half or more, under the same label, and none is left; reports do,
    if they say the same of all observations; all else is by `same_answer`, which the reference only
    tells whether it is a yes/no question. What is no boxes, or tells of no observation, is compared
    as words."""
    if answer_type == "report":
        told, others = labels_of(first), labels_of(second)
        return told == others and (bool(told) or same_words(first, second))
    if answer_type == "boxes" and frame is not None:
        named, other = read_boxes(first, frame), read_boxes(second, frame)
        if named is None or other is None:
            return named is other and same_words(first, second)
        # A box without a label agrees with labelled ones, but not the other way round.
        return all_found(named, other) or all_found(other, named)
    return same_answer(first, second, reference, options)
