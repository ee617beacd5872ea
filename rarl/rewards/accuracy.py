"""`accuracy`: is the tagged answer right, by the question's type?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.rewards.parsing import chosen_option, normalise, parse_reply, token_f1, yes_or_no


def accuracy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    answer_type: Sequence[str],
    options: Sequence[Sequence[str] | None],
    **columns: Any,
) -> list[float | None]:
    """1 or 0 for closed and choice questions, token F1 for open ones; 0 where no answer is tagged."""
    rows = zip(completions, answer, answer_type, options, strict=True)
    return [grade_answer(parse_reply(text).answer, wanted, kind, choices) for text, wanted, kind, choices in rows]


def grade_answer(given: str | None, reference: str, answer_type: str, options: Sequence[str] | None) -> float:
    if given is None:
        return 0.0
    if answer_type == "open" and not options:
        return token_f1(given, reference)
    return float(is_correct(given, reference, options))


def is_correct(given: str | None, reference: str, options: Sequence[str] | None) -> bool:
    """Exactly right: the option with options, yes/no as a word where that is the answer, else equal words."""
    if given is None:
        return False
    if options:
        return chosen_option(given, options) == reference
    if normalise(reference) in ("yes", "no"):
        return yes_or_no(given) == normalise(reference)
    return normalise(given) == normalise(reference)
