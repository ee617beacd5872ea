"""`facts`: whether the thinking says what is known to be true of the image.

The facts are sentences in a column of the data. Most are the answers to other questions about the
same image, so no rationale is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rarl.replies.facts import FactsValue, facts_values
from rarl.replies.lexicon import read_lexicon
from rarl.replies.tags import asks_thinking, parse_reply
from rarl.replies.tricks import addresses_the_judge
from rarl.rewards import per_reply
from rarl.rewards.form import length_factor
from rarl.schema import ReplyForm

PAID = 3  # facts that a reply must get right for the whole reward, where there are so many


@per_reply
def facts_reward(
    text: str,
    *,
    form: ReplyForm,
    question: str,
    answer: str,
    facts: Sequence[str] | None,
    other_facts: Sequence[Sequence[str]] | None,
    max_words: int = 200,
    lexicon: str = "",
) -> float | None:
    """Pays (1 + (v − u) / 2) / 2, where v in [−1, 1] is what the thinking says rightly of the
    facts, less what it contradicts, over `PAID` of them or all if they are fewer, and u the mean
    of the same over the facts of a few other images of the organ. Silence earns 0.5. What is said
    of every image alike is as true of the others, so it earns 0.5 on average too, whatever the
    reader of findings misreads. Without `other_facts` it is (1 + v) / 2. What is above 0.5 shrinks
    beyond `max_words` words, and is nothing at twice as many.

    0 for a malformed reply and for one that speaks to whoever scores it. None for a prompt without
    thinking, and without facts. The answer is not looked at: gate it by `format` alone, so that
    groups whose answers are all wrong learn from it too.
    """
    if not asks_thinking(form) or not facts:
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    known, words = f"{question} {answer}", read_lexicon(lexicon or None)
    sets = [facts, *(other_facts or ())]
    own, *others = map(share, facts_values(reply.thinking, sets, known, words))
    ahead = (own - sum(others) / len(others)) / 2 if others else own
    return 0.5 + 0.5 * (ahead if ahead < 0 else ahead * length_factor(reply.thinking, 1, max_words))


def share(found: FactsValue) -> float:
    """Returns how much of one image's facts is said, less what is contradicted, in [−1, 1]."""
    verdicts = found.verdicts
    return max(-1.0, min(1.0, sum(verdicts) / min(PAID, len(verdicts)))) if verdicts else 0.0
