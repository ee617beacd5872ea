"""What is wrong with a run's rewards, in words, from its last steps' figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW = 20  # steps that have to agree
NOTHING = 0.95  # of the replies without a value, or of the groups that nothing tells apart
EARNED = 0.95  # a mean from which nothing is left to be told apart
COPIES_EARN = 0.5  # of what the originals earn above a thinking that says nothing


def alarms(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns a sentence by what it is about; nothing before there are `WINDOW` steps."""
    recent, found = rows[-WINDOW:], dict[str, str]()
    if len(recent) < WINDOW:
        return found
    span = f"in steps {recent[0]['step']} to {recent[-1]['step']}"
    for key in recent[-1]:
        what, _, name = key.partition("/")
        mean = mean_of(recent, key)
        if mean is None:
            continue
        if what == "unscored" and mean >= NOTHING:
            found[key] = (
                f"the reward {name} had no value for {mean:.0%} of the replies {span}: it trains "
                "nothing; give it what it compares with, or take it out"
            )
        elif what == "without_spread" and mean >= NOTHING:
            if (mean_of(recent, f"reward/{name}") or 0.0) < EARNED:
                found[key] = (
                    f"the reward {name} told the replies apart in {1 - mean:.0%} of the groups "
                    f"{span}: it trains next to nothing"
                )
        elif what == "sensitivity" and mean > COPIES_EARN:
            reward, _, kind = name.partition("/")
            found[key] = (
                f"the reward {reward} hardly sees what is said: {kind} copies of the thinkings "
                f"earned {mean:.0%} of what these earn above silence {span}"
            )
    return found


def mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Returns the mean of the values that are there; None if they are of less than half of the
    steps."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if 2 * len(values) >= len(rows) else None
