"""What a text says of facts: plain sentences that are true of an image, each taken by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from rarl.replies.findings import Claim, split_claims
from rarl.replies.lexicon import SHIPPED, Lexicon
from rarl.replies.matching import MAX_CLAIMS, conflict, pools, references_of, support
from rarl.replies.wording import known_words


@dataclass(frozen=True)
class FactsValue:
    """What a text says of each fact, in order: how sure it says it, in (0, 1], −1 where it
    contradicts it, 0 where it says nothing of it."""

    verdicts: tuple[float, ...]

    @property
    def supported(self) -> int:
        return sum(verdict > 0 for verdict in self.verdicts)

    @property
    def contradicted(self) -> int:
        return sum(verdict < 0 for verdict in self.verdicts)

    @property
    def unknown(self) -> int:
        return sum(verdict == 0 for verdict in self.verdicts)


def facts_value(
    thinking: str, facts: Sequence[str], known: str = "", lexicon: Lexicon = SHIPPED
) -> FactsValue:
    """Returns what a thinking says of facts, each a plain sentence that is true of the image; see
    `facts_values`."""
    return facts_values(thinking, [facts], known, lexicon)[0]


def facts_values(
    thinking: str, sets: Sequence[Sequence[str]], known: str = "", lexicon: Lexicon = SHIPPED
) -> list[FactsValue]:
    """Returns what a thinking says of several sets of facts, which are read alike.

    `known` are further texts whose words may be said, such as the question. Only what is asserted
    counts. One claim that cannot be true beside a fact contradicts it, whatever else is said.
    """
    return [*said_of(thinking, tuple(map(tuple, sets)), known, lexicon)]


@lru_cache(maxsize=4096)
def said_of(
    thinking: str, sets: tuple[tuple[str, ...], ...], known: str, lexicon: Lexicon
) -> tuple[FactsValue, ...]:
    """Returns `facts_values`, remembered: replies of a group often think the same."""
    facts = dict.fromkeys(chain.from_iterable(sets))
    given = split_claims(thinking, known_words(known, *facts), lexicon)[:MAX_CLAIMS]
    asserted = list(dict.fromkeys(claim for claim in given if claim.asserted))
    verdicts = {fact: verdict_on(fact, asserted, lexicon) for fact in facts}
    return tuple(FactsValue(tuple(verdicts[fact] for fact in own)) for own in sets)


def verdict_on(fact: str, asserted: Sequence[Claim], lexicon: Lexicon) -> float:
    """Returns what the asserted claims say of one fact."""
    wanted = references_of(fact, lexicon)
    if any(conflict(claim, one, lexicon) for claim in asserted for one in wanted):
        return -1.0
    earned = [
        max(
            (support(pool, one, lexicon) * pool.trust for pool in pools(asserted, one)), default=0.0
        )
        for one in wanted
    ]
    return sum(earned) / len(earned) if earned else 0.0
