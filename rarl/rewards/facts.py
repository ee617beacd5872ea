"""`facts`: whether the thinking says what is known to be true of the image.

The facts are sentences in a column of the data. Most are the answers to other questions about the
same image, so no rationale is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.lexicon import read_lexicon
from rarl.replies.matching import facts_value
from rarl.replies.tags import parse_reply
from rarl.replies.tricks import addresses_the_judge
from rarl.rewards import per_reply
from rarl.rewards.form import length_factor
from rarl.schema import ReplyForm

PAID = 3  # facts that a reply must get right for the whole reward, where there are so many
EVEN = 0.5  # the prior of a fact of which nothing is known


@per_reply
def facts_reward(
    text: str,
    *,
    form: ReplyForm,
    question: str,
    answer: str,
    facts: Sequence[str] | None,
    fact_priors: Sequence[float] | None,
    max_words: int = 200,
    lexicon: str = "",
) -> float | None:
    """Pays a fair bet on each fact, against its prior π among other images of the organ: 1 − π
    where the thinking says it, −(1 − π), the prior of what was claimed instead, where it
    contradicts it, 0 where it is silent. So whatever is said of every image alike earns nothing on
    average. The reward is 0.5 + 0.5 × the sum over the three largest possible gains, cut to
    [0, 1]: 0.5 is silence. Gains shrink above `max_words` words, and are none at twice as many.

    Without `fact_priors` every prior is one half. 0 for a malformed reply and for one that speaks
    to whoever scores it. None for a prompt without thinking, and without facts. The answer is not
    looked at: gate it by `format` alone, so that groups whose answers are all wrong learn from it
    too.
    """
    if form == "answer" or not facts:
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    gains = [1 - prior for prior in fact_priors or [EVEN] * len(facts)]
    found = facts_value(
        reply.thinking, facts, f"{question} {answer}", read_lexicon(lexicon or None)
    )
    won = sum(gain * verdict for gain, verdict in zip(gains, found.verdicts, strict=True))
    stake = sum(sorted(gains)[-PAID:])
    share = max(-1.0, min(1.0, won / stake)) if stake else 0.0
    return 0.5 + 0.5 * (share if share < 0 else share * length_factor(reply.thinking, 1, max_words))
