"""Why an example cannot be used."""

from __future__ import annotations

import unicodedata

from rarl.data.images import BadImage, decode_image
from rarl.schema import ANSWER_TYPES, Example

UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's controls, marks without width, and blanks


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
    for name in ("id", "image_id", "question", "answer"):
        if not is_seen(getattr(example, name)):
            return f"the {name} is empty"
    if example.answer_type not in ANSWER_TYPES:
        return f"answer_type '{example.answer_type}' is not one of {', '.join(ANSWER_TYPES)}"
    if example.answer_type == "choice" and not example.options:
        return "answer_type is 'choice' but there are no options"
    return options_fault(example.answer, example.options) if example.options else None


def options_fault(answer: str, options: tuple[str, ...]) -> str | None:
    if not all(is_seen(option) for option in options):
        return f"an option is empty among {list(options)}"
    if answer not in options:
        return f"answer '{answer}' is not among the options {list(options)}"
    if len(options) == 1:
        return f"'{answer}' is the only option"
    if options.count(answer) > 1:
        return f"answer '{answer}' is there twice among the options {list(options)}"
    return None


def is_seen(text: str) -> bool:
    """Whether there is anything to read."""
    return any(unicodedata.category(character) not in UNSEEN for character in text)
