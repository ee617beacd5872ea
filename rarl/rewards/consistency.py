"""`consistency`: does the thinking alone lead to the reply's own answer?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.replies.grading import same_answer
from rarl.replies.tags import parse_reply
from rarl.schema import ReplyForm


def consistency_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    form: Sequence[ReplyForm],
    rederived: Sequence[str | None],
    answer: Sequence[str],
    options: Sequence[Sequence[str] | None],
    **columns: Any,
) -> list[float | None]:
    """Pays 1 where the policy, shown its thinking in place of the image, gives the same answer
    again, else 0 (CAPO, arXiv 2506.12849); 0 for a malformed reply, None for a prompt without
    thinking or where it was not asked again.

    Right or wrong makes no difference: let `accuracy` gate it, or thinking that repeats a guess is
    paid.
    """
    rows = zip(completions, form, rederived, answer, options, strict=True)
    return [score_consistency(*row) for row in rows]


def score_consistency(
    text: str, form: ReplyForm, rederived: str | None, reference: str, options: Sequence[str] | None
) -> float | None:
    if form == "answer":
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.answer:
        return 0.0
    if rederived is None:
        return None
    again = parse_reply(rederived, "answer").answer
    return float(bool(again) and same_answer(reply.answer, again or "", reference, options))
