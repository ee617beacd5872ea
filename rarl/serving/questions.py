"""A question as a client asks it → the words in which the model was trained to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rarl.prompts import Family, chat_messages, question_text
from rarl.replies.grading import is_yes_no
from rarl.replies.words import yes_or_no
from rarl.schema import Example
from rarl.serving.requests import Message, Refusal


@dataclass(frozen=True)
class PosedQuestion:
    """A question as the model is asked it. `options` is None where training shows none. `reference`
    is yes or no in its language for a yes/no question, and else empty: the grading goes by it."""

    text: str
    options: tuple[str, ...] | None
    reference: str


def pose(asked: str, given: list[str] | None, family: Family, boxes: str = "") -> PosedQuestion:
    """Returns a question, with the options that are given, in the first words of a family, with
    which its model is measured. `boxes` is what prompts for this kind of model say of boxes, where
    it asks for them."""
    is_closed = {yes_or_no(one, one) for one in given or ()} == {"yes", "no"}
    # The word tells the language.
    reference = next(filter(is_yes_no, given or ()), "yes") if is_closed else ""
    options = tuple(given) if given and not is_closed else None
    kind: Any = "closed" if is_closed else "choice" if options else "boxes" if boxes else "open"
    example = Example(
        id="",
        images=(),
        image_id="",
        question=asked,
        answer=reference,
        answer_type=kind,
        options=options,
    )
    text = question_text(example, family, family.wordings[0], boxes)
    return PosedQuestion(text, options, reference)


def in_own_words(messages: list[Message], family: Family) -> Message:
    """Returns the one turn of the user with its question as `pose` puts it, behind its images, as
    in training. Raises Refusal for anything but one question."""
    parts = sorted(messages[0].content, key=lambda part: part.type)  # "image_url", "text"
    asked = parts[-1].text if parts else None
    others = [part for part in parts[:-1] if part.text is not None]
    if len(messages) > 1 or messages[0].role != "user" or others or not (asked or "").strip():
        reason = '"auto" takes one message of the user, with one text that is the question alone'
        raise Refusal("invalid_value", "prompt", reason=reason)
    parts[-1].text = pose(str(asked), None, family).text
    return Message(role="user", content=parts)


def turn_of(text: str, labels: Sequence[str], urls: Sequence[str]) -> dict[str, Any]:
    """Returns the one turn of a user as training writes it, with the images in it: in order, each
    behind its label if that is not empty, then the text."""
    (turn,) = chat_messages(text, labels)
    waiting = iter(urls)
    content = [
        {"type": "image_url", "image_url": {"url": next(waiting)}}
        if part["type"] == "image"
        else part
        for part in turn["content"]
    ]
    return {**turn, "content": content}
