"""Why an example cannot be used."""

from __future__ import annotations

from rarl.data.images import BadImage, decode_image
from rarl.schema import ANSWER_TYPES, Example


def find_fault(example: Example) -> str | None:
    """Why a row cannot be used, or None."""
    fault = text_fault(example)
    if fault is None:
        try:
            decode_image(example.image)
        except BadImage as error:
            fault = f"image {error}"
    return None if fault is None else f"example '{example.id}': {fault}"


def text_fault(example: Example) -> str | None:
    """What is wrong with question, answer and options, or None."""
    if not example.question.strip():
        return "the question is empty"
    if not example.answer.strip():
        return "the answer is empty"
    if example.answer_type not in ANSWER_TYPES:
        return f"answer_type '{example.answer_type}' is not one of {', '.join(ANSWER_TYPES)}"
    if example.answer_type == "choice" and not example.options:
        return "answer_type is 'choice' but there are no options"
    if example.options and example.answer not in example.options:
        return f"answer '{example.answer}' is not among the options {list(example.options)}"
    if example.options and example.options.count(example.answer) > 1:
        return f"answer '{example.answer}' is there twice among the options {list(example.options)}"
    return None
