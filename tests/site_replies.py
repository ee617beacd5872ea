"""Yes/no questions of several sites, and replies to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rarl.samples import Sample
from rarl.schema import Example
from tests.records import example, reply_to


def asked(index: int, site: str | None, yes: bool = True, **changes: Any) -> Example:
    """A yes/no question about an image of its own."""
    return example(index, answer="yes" if yes else "no", site=site, **changes)


def replied(one: Example, says: str | None, **grades: Any) -> Sample:
    return reply_to(one, says, {"reasoning": None, **grades})


def site_replies(sizes: Mapping[Any, int], right: Mapping[Any, float]) -> list[Sample]:
    """The first of each site's replies are right, as many as its share says."""
    samples: list[Sample] = []
    for site, size in sizes.items():
        for place in range(size):
            says = "yes" if place < right[site] * size else "no"
            samples.append(replied(asked(len(samples), site), says))
    return samples
