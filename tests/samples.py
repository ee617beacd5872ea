"""Replies as records, for tests of what is made of them."""

from __future__ import annotations

from rarl.samples import Sample
from rarl.schema import Example, Prompt, ReplyForm, Rollout, Verdict


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
