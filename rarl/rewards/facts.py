"""`facts`: whether the thinking says what is known to be true of the image.

The facts are sentences in a column of the data. Most are the answers to other questions about the
same image, so no rationale is needed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from rarl.errors import UserError
from rarl.replies.findings import Claim
from rarl.replies.lexicon import SHIPPED, read_lexicon
from rarl.replies.matching import conflict, facts_value, references_of, support
from rarl.replies.tags import parse_reply
from rarl.replies.tricks import addresses_the_judge
from rarl.rewards import per_reply
from rarl.rewards.form import length_factor
from rarl.schema import ReplyForm

SMOOTHING = 4.0  # images that a prior of one half is worth
PAID = 3  # facts that a reply must get right for the whole reward, where there are so many
EVEN = 0.5  # the prior of a fact of which nothing is known
Priors = Mapping[str, Mapping[str, float]]  # by organ ("" for none), then by fact


class WithFacts(Protocol):
    """An example with its facts."""

    @property
    def image_id(self) -> str: ...
    @property
    def organ(self) -> str | None: ...
    @property
    def facts(self) -> Sequence[str] | None: ...


@per_reply
def facts_reward(
    text: str,
    *,
    form: ReplyForm,
    question: str,
    answer: str,
    organ: str | None,
    facts: Sequence[str] | None = None,
    priors: str = "",
    max_words: int = 200,
    lexicon: str = "",
) -> float | None:
    """Pays a fair bet on each fact, against its prior π among other images of the organ: 1 − π
    where the thinking says it, −(1 − π), the prior of what was claimed instead, where it
    contradicts it, 0 where it is silent. So whatever is said of every image alike earns nothing on
    average. The reward is 0.5 + 0.5 × the sum over the three largest possible gains, cut to
    [0, 1]: 0.5 is silence. Gains shrink above `max_words` words, and are none at twice as many.

    `priors` names the file that `write_priors` writes; without it every prior is one half. 0 for a
    malformed reply and for one that speaks to whoever scores it. None for a prompt without
    thinking, and without facts. The answer is not looked at: gate it by `format` alone, so that
    groups whose answers are all wrong learn from it too.
    """
    if form == "answer" or not facts:
        return None
    reply = parse_reply(text, form)
    if not reply.well_formed or not reply.thinking or addresses_the_judge(text):
        return 0.0
    known = read_priors(priors).get(organ or "", {}) if priors else {}
    gains = [1 - known.get(fact, EVEN) for fact in facts]
    found = facts_value(
        reply.thinking, facts, f"{question} {answer}", read_lexicon(lexicon or None)
    )
    won = sum(gain * verdict for gain, verdict in zip(gains, found.verdicts, strict=True))
    stake = sum(sorted(gains)[-PAID:])
    share = max(-1.0, min(1.0, won / stake)) if stake else 0.0
    return 0.5 + 0.5 * (share if share < 0 else share * length_factor(reply.thinking, 1, max_words))


def fact_priors(examples: Iterable[WithFacts]) -> dict[str, dict[str, float]]:
    """Returns how often each fact holds among the other images of its organ of which it is known,
    smoothed towards one half. Training rows alone belong in here."""
    by_organ: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for example in examples:
        by_organ[example.organ or ""][example.image_id].update(example.facts or ())
    return {organ: organ_priors(images) for organ, images in by_organ.items()}


def organ_priors(images: Mapping[str, set[str]]) -> dict[str, float]:
    """Returns the prior of each fact about images of one organ."""
    claims = {fact: references_of(fact, SHIPPED) for facts in images.values() for fact in facts}
    holding: dict[str, set[str]] = defaultdict(set)
    for image, facts in images.items():
        for fact in facts:
            holding[fact].add(image)
    priors = {}
    for fact, own in holding.items():
        agree, against = set[str](), set[str]()
        for other, others in holding.items():
            if says(claims[other], claims[fact], support):
                agree |= others
            elif says(claims[other], claims[fact], conflict):
                against |= others
        agree |= own
        # The image on which the bet is made is not counted.
        agreeing = len(agree) - 1
        counted = agreeing + len(against - agree)
        priors[fact] = (agreeing + SMOOTHING * EVEN) / (counted + SMOOTHING)
    return priors


class Relation(Protocol):
    """How much one claim says, or denies, of another."""

    def __call__(self, claim: Claim, reference: Claim, /) -> float: ...


def says(claims: Sequence[Claim], wanted: Sequence[Claim], relation: Relation) -> bool:
    return any(relation(claim, one) for claim in claims for one in wanted)


def write_priors(path: Path, examples: Iterable[WithFacts]) -> None:
    """Writes the priors of a data set's facts as JSON, for the option `priors`."""
    path.write_text(json.dumps(fact_priors(examples), ensure_ascii=False, indent=0), "utf-8")


@lru_cache(maxsize=4)
def read_priors(path: str) -> Priors:
    """Returns what `write_priors` wrote. Raises UserError for a file that is none of its."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            organ: {fact: min(1.0, max(0.0, float(prior))) for fact, prior in facts.items()}
            for organ, facts in found.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        fault = (
            "expected JSON of organ → fact → prior, as rarl.rewards.facts.write_priors writes it"
        )
        raise UserError(f"rewards.facts.options.priors: {path}: {fault}; {error}") from None
