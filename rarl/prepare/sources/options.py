"""The options of a question in a table of your own, and the answer among them, however either is
written."""

from __future__ import annotations

import json
import re
from typing import Any

from rarl.prepare.sources.record import Fault, scalar_text
from rarl.prepare.sources.tables import require_whole_characters

LETTERED = re.compile(r"([A-Za-z])[.)]\s*(\S.*)", re.DOTALL)  # B. Liver, B) Liver


def read_options(value: Any) -> tuple[str, ...] | None:
    """A list, a list written as JSON, or texts separated by |. Raises Fault."""
    if value is None or value != value or value == "" or value == []:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
            require_whole_characters(value)
        except (ValueError, RecursionError):
            raise Fault(f"options {value!r} look like a JSON list but are none") from None
    elif isinstance(value, str) and "|" in value:
        value = value.split("|")
    if isinstance(value, str):
        raise Fault(f"options '{value}' are one text; give a list, or texts separated by |")
    if not isinstance(value, list) or not all(is_scalar(option) for option in value):
        raise Fault(f"options {value!r} are not a list of texts")
    return tuple(scalar_text(option) for option in value)


def is_scalar(value: Any) -> bool:
    """A text or number that is there; True and NaN are neither, as in every other column."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def answer_among(
    answer: str, options: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...] | None, tuple[str, ...]]:
    """(answer, options, notes): both without letters before them, and the answer as its option is
    written. What fits no option, or several, stays as it is: the checks find that."""
    if not options:
        return answer, options, ()
    plain = without_letters(options)
    notes = (
        ("questions had letters before their options, which were taken away",)
        if plain != options
        else ()
    )
    named, note = as_option(answer, plain)
    return named, plain, notes + note


def without_letters(options: tuple[str, ...]) -> tuple[str, ...]:
    """Only where all of them have one, in order: `A. baumannii` alone is a name."""
    found = [LETTERED.fullmatch(option) for option in options]
    if len(options) > 1 and all(one and place_of(one[1]) == i for i, one in enumerate(found)):
        return tuple(one[2] for one in found if one)
    return options


def as_option(answer: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    if answer in options:
        return answer, ()
    alike = [option for option in options if folded(option) == folded(answer)]
    if alike:
        return (
            (alike[0], ("answers differed from their option in case or blanks",))
            if len(alike) == 1
            else (answer, ())
        )
    if len(answer) == 1 and place_of(answer) in range(len(options)):
        return options[place_of(answer)], ("answers were an option's letter and are now its text",)
    lettered = LETTERED.fullmatch(answer)
    if lettered and place_of(lettered[1]) in range(len(options)):
        option = options[place_of(lettered[1])]
        if folded(option) == folded(lettered[2]):  # else letter and text disagree
            return option, ("answers had their option's letter before them, which was taken away",)
    return answer, ()


def place_of(letter: str) -> int:
    """From 0; -1 or above 25 for what is no letter."""
    return ord(letter.upper()) - ord("A") if letter.isascii() and letter.isalpha() else -1


def folded(text: str) -> str:
    return " ".join(text.casefold().split())
