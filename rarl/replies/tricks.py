"""Text that is there for whoever scores the reply: an answer before its evidence, words to a
judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rarl.replies.findings import Claim
from rarl.replies.grading import is_yes_no
from rarl.replies.words import fold, pattern

ANSWER_STATED, CONCLUSION = pattern("answer_stated"), pattern("conclusion")
TO_THE_JUDGE = pattern("to_the_judge")
ALONE = re.compile(r"\(?[a-h][).:]?")
# Characters that do not show; between Latin letters the joiners and direction marks of other
# scripts too.
HIDDEN = re.compile(
    "[\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]|[A-Za-z][\u200c-\u200f]"
)
MIXED_SCRIPT = re.compile("[a-z][\u0400-\u04ff]|[\u0400-\u04ff][a-z]")


def states_answer(clause: Claim, answers: Sequence[frozenset[str]]) -> bool:
    """Whether a clause is "the answer is …", or says nothing but an answer: "B", "yes", or "on the
    left" to "left". `answers` are given by their content words."""
    text = clause.text
    if ANSWER_STATED.search(text) or ALONE.fullmatch(text) or is_yes_no(text):
        return True
    return bool(clause.words) and clause.words in answers


def concludes(clause: Claim) -> bool:
    return CONCLUSION.search(clause.text) is not None


def addresses_the_judge(reply: str) -> bool:
    """Whether there are words to a judge, turns of a made-up conversation, or characters that only
    a machine sees."""
    folded = fold(reply)
    return bool(HIDDEN.search(reply) or TO_THE_JUDGE.search(folded) or MIXED_SCRIPT.search(folded))
