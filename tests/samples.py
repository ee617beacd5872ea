"""Replies as records, and what a reward pays for one, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from rarl.rewards import COLUMNS, Reward
from rarl.samples import Sample
from rarl.schema import Example, Prompt, ReplyForm, Rollout, Verdict

RATIONALE = "Two lungs between ribs. A round spot in the left half."


def reply_to(
    example: Example,
    text: str,
    form: ReplyForm = "think",
    rederived: str | None = None,
    verdict: Verdict | None = None,
) -> Sample:
    """A reply of this text."""
    rollout = Rollout(text, [], "stop", 0)
    return Sample(
        example, Prompt("", "plain/0", form), rollout, rederived=rederived, verdict=verdict
    )


def pay(reward: Reward, text: str, **arguments: Any) -> float | None:
    """What a reward pays for one reply; columns and options by name."""
    columns = {name: [one] if name in COLUMNS else one for name, one in arguments.items()}
    [value] = reward([""], [text], **columns)
    return value
