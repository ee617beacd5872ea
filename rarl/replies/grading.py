"""Is an answer right, by the question's type?"""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.findings import compare_findings
from rarl.replies.words import chosen_option, normalise, same_words, token_f1, yes_or_no


def grade_answer(
    given: str | None, reference: str, answer_type: str, options: Sequence[str] | None
) -> float:
    """1 or 0; for open questions without options the token F1, and 0 for an answer that says the
    opposite."""
    if given is None:
        return 0.0
    if answer_type == "open" and not options and not is_yes_no(reference):
        return (
            0.0 if compare_findings(given, reference).contradicted else token_f1(given, reference)
        )
    return float(is_correct(given, reference, options))


def is_correct(given: str | None, reference: str, options: Sequence[str] | None) -> bool:
    """Exactly right: the option with options, yes/no as a word where that is the answer, else equal
    words. Several answers are wrong."""
    if given is None:
        return False
    if options:
        chosen = chosen_option(given, options)
        return chosen is not None and same_words(chosen, reference)
    if is_yes_no(reference):
        return yes_or_no(given) == normalise(reference)
    return same_words(given, reference)


def is_yes_no(reference: str) -> bool:
    return normalise(reference) in ("yes", "no")


def same_answer(first: str, second: str, reference: str, options: Sequence[str] | None) -> bool:
    """Do two answers say the same, right or wrong? The reference only tells whether the question is
    a yes/no one."""
    if options and (chosen := chosen_option(first, options)) is not None:
        return chosen == chosen_option(second, options)
    if is_yes_no(reference) and not options and (found := yes_or_no(first)) is not None:
        return found == yes_or_no(second)
    return same_words(first, second)
