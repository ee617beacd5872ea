"""`boxes`: whether the answer points at what is there."""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.boxes import read_boxes
from rarl.replies.overlap import boxes_value
from rarl.replies.tags import parse_reply
from rarl.rewards import per_reply
from rarl.schema import AnswerType, Box, Frame, ReplyForm


@per_reply
def boxes_reward(
    text: str,
    *,
    form: ReplyForm,
    answer_type: AnswerType,
    boxes: Sequence[Box] | None,
    frame: Frame | None,
) -> float | None:
    """Pays the overlap (IoU) of the named boxes with the true ones in the best one-to-one matching
    of those whose labels agree, over the number of named or of true boxes, whichever is larger: a
    further box costs as much as one that is missing. A box around the whole image earns the share
    of it that the finding covers. Where there is nothing to point at, 1 for saying so.

    0 for an answer that is no boxes in the model family's way, or more than a hundred. None for
    questions that do not ask for boxes, and for a look where there is nothing to point at.
    """
    if frame is None or (not boxes if form == "look" else answer_type != "boxes"):
        return None
    answer = parse_reply(text, form).answer
    return boxes_value(None if answer is None else read_boxes(answer, frame), boxes or ())
