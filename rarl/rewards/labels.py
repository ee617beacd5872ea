"""`labels`: whether a report says of each observation what the reference report says."""

from __future__ import annotations

from rarl.replies.observations import agreement
from rarl.replies.tags import parse_reply
from rarl.replies.tricks import addresses_the_judge
from rarl.rewards import per_reply
from rarl.schema import AnswerType, ReplyForm


@per_reply
def labels_reward(
    text: str, *, form: ReplyForm, answer: str, answer_type: AnswerType
) -> float | None:
    """Pays the macro F1 with polarity of the report in the answer against the reference, over
    CheXpert's fourteen observations as far as either report tells of them: the share of these of
    which both say the same, present, uncertain or absent. What stands in the thinking counts for
    nothing. To list every observation, there or not, costs those of which the reference is silent.

    0 for a malformed reply and for one that speaks to whoever scores it. None for questions that do
    not ask for a report, and where the reference tells of no observation.
    """
    if answer_type != "report":
        return None
    reply = parse_reply(text, form)
    value = agreement(reply.answer, answer)
    if value is None:
        return None
    return value if reply.well_formed and not addresses_the_judge(text) else 0.0
