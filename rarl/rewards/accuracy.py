"""`accuracy`: is the tagged answer right, by the question's type?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.replies.grading import grade_answer
from rarl.replies.tags import parse_reply
from rarl.schema import ReplyForm


def accuracy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    answer_type: Sequence[str],
    options: Sequence[Sequence[str] | None],
    form: Sequence[ReplyForm] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Pays 1 or 0 for closed and choice questions, token F1 for open ones (0 for one that says the
    opposite); 0 where not exactly one answer is tagged. The option's letter or its text, alone or
    together, chooses it.

    It pays whatever the format: let `format` gate it where a malformed reply is to earn nothing
    (MedVLThinker, arXiv 2508.02669).
    """
    forms: Sequence[ReplyForm] = form or ["think"] * len(completions)
    rows = zip(completions, forms, answer, answer_type, options, strict=True)
    return [
        grade_answer(parse_reply(text, how).answer, wanted, kind, choices)
        for text, how, wanted, kind, choices in rows
    ]
