"""Grades: of an answer by the question's type, and of a text by the organ and the modality that it
names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rarl.replies.concepts import broader
from rarl.replies.findings import meaning, split_clauses
from rarl.replies.lexicon import stems
from rarl.replies.matching import compare_findings
from rarl.replies.words import (
    VOCABULARY,
    YES_NO,
    answer_words,
    chosen_option,
    same_words,
    token_f1,
    yes_or_no,
)

MODALITIES, REGIONS = VOCABULARY["modalities"], VOCABULARY["regions"]


def grade_answer(
    given: str | None, reference: str, answer_type: str, options: Sequence[str] | None
) -> float:
    """Returns 1 or 0; for open questions without options the token F1, 1 for another name of the
    same, and 0 for an answer that says the opposite."""
    if given is None:
        return 0.0
    if answer_type == "open" and not options and not is_yes_no(reference):
        if same_meaning(given, reference):
            return 1.0
        opposite = compare_findings(given, reference).contradicted
        return 0.0 if opposite else token_f1(given, reference)
    return float(is_correct(given, reference, options))


def is_correct(
    given: str | None,
    reference: str,
    options: Sequence[str] | None,
    also_right: Sequence[str] | None = None,
) -> bool:
    """Whether an answer is exactly right: the option with options, yes/no as a word where that is
    the answer, else equal words or another name of the same. Several answers are wrong. Any of
    `also_right` will do in place of the reference."""
    if given is None:
        return False
    if also_right:
        return any(is_correct(given, one, options) for one in (reference, *also_right))
    if options:
        chosen = chosen_option(given, options)
        return chosen is not None and same_words(chosen, reference)
    if is_yes_no(reference):
        return yes_or_no(given, reference) == yes_or_no(reference, reference)
    return same_meaning(given, reference)


def same_meaning(first: str, second: str) -> bool:
    """Whether two answers are equal words, or say the same by the lexicon: RUL and right upper
    lobe, two and 2, 3 cm and 30 mm."""
    if same_words(first, second):
        return True
    said, wanted = meaning(first), meaning(second)
    if len(said) == len(wanted) == 1:
        ((words, negated),), ((others, _),) = said, wanted
        # "Effusion" in an answer on a knee.
        exact = (next(iter(broader(word) & others), word) for word in words)
        said = frozenset([(frozenset(exact), negated)])
    return bool(said) and said == wanted


def is_yes_no(text: str) -> bool:
    """Whether a text is nothing but the word for yes or for no in one of the languages."""
    found = answer_words(text)
    return len(found) == 1 and any(found <= yes | no for yes, no in YES_NO)


def same_answer(first: str, second: str, reference: str, options: Sequence[str] | None) -> bool:
    """Whether two answers say the same, right or wrong. The reference only tells whether the
    question is a yes/no one."""
    if options and (chosen := chosen_option(first, options)) is not None:
        return chosen == chosen_option(second, options)
    if is_yes_no(reference) and not options and (found := yes_or_no(first, reference)):
        return found == yes_or_no(second, reference)
    return same_meaning(first, second)


def attribute_recall(text: str, attributes: Sequence[str]) -> float:
    """Returns the mean over attributes of 1 where the text names it and nothing else of its kind,
    less where it names several, and 0 where it does not. A clause that denies something names
    nothing."""
    clauses = [read_text(one.text) for one in split_clauses(text) if not one.negated]
    said = f" {' '.join(clauses)} "
    return sum(attribute_share(said, read_text(name)) for name in attributes) / len(attributes)


def attribute_share(said: str, name: str) -> float:
    for groups in (MODALITIES, REGIONS):
        own = [group for group in groups if names_any(f" {name} ", group)]
        if own:
            named = [group for group in groups if names_any(said, group)]
            return 1 / len(named) if own[0] in named else 0.0
    return float(all(f" {word} " in said for word in name.split()))


def names_any(said: str, group: Sequence[str]) -> bool:
    return any(f" {read_text(name)} " in said for name in group)


@lru_cache(maxsize=1024)
def read_text(text: str) -> str:
    """Returns stems with blanks between; "X-ray" and "x ray" are one word."""
    return " ".join(stems(text))
