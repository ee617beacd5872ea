"""Text that is there for whoever scores the reply: an answer before its evidence, words to a
judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rarl.replies.concepts import content_words
from rarl.replies.findings import Claim, split_clauses
from rarl.replies.grading import is_yes_no
from rarl.replies.words import fold, pattern

ANSWER_STATED, CONCLUSION = pattern("answer_stated"), pattern("conclusion")
TO_THE_JUDGE = pattern("to_the_judge")
# Where a thinking is cut into the parts that are kept or left out as a whole.
PART_END = re.compile(r"(?<=[.;!?\n])(?!\d)|(?<=,)\s")
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


def without_answers(thinking: str, question: str, answers: Sequence[str]) -> str:
    """Returns a thinking without the parts that state an answer, draw the conclusion, or say
    nothing but the question's words and an answer ("The lesion is on the left"): what is left is
    evidence."""
    asked, given = content_words(question), [content_words(one) for one in answers]
    kept = []
    for part in PART_END.split(thinking):
        clauses = split_clauses(part)
        stated = any(states_answer(one, given) or concludes(one) for one in clauses)
        words = frozenset().union(*(clause.words for clause in clauses))
        restated = any(words <= asked | one for one in given)
        if part.strip() and not stated and not restated:
            kept.append(part.strip())
    return " ".join(kept)


def concludes(clause: Claim) -> bool:
    return CONCLUSION.search(clause.text) is not None


def addresses_the_judge(reply: str) -> bool:
    """Whether there are words to a judge, turns of a made-up conversation, or characters that only
    a machine sees."""
    folded = fold(reply)
    return bool(HIDDEN.search(reply) or TO_THE_JUDGE.search(folded) or MIXED_SCRIPT.search(folded))
