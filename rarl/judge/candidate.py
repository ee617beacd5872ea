"""What a judge is asked about."""

from __future__ import annotations

from dataclasses import dataclass

from rarl.replies.tags import parse_reply
from rarl.schema import Example, Prompt


@dataclass(frozen=True)
class Candidate:
    """One reply to be judged, as text alone: the judge never sees the image.

    `reply` is the whole reply as sampled; `thinking` and `answer` are what was read from it, None
    where its tags are not what the prompt asked for. `reference` and `rationale` are the truth.
    """

    question: str
    options: tuple[str, ...] | None
    reference: str
    rationale: str | None
    reply: str
    thinking: str | None
    answer: str | None


def candidate_of(example: Example, prompt: Prompt, text: str) -> Candidate:
    """The reply `text` to `prompt`, as the judge is shown it."""
    reply = parse_reply(text, prompt.form)
    return Candidate(
        question=example.question,
        options=example.options,
        reference=example.answer,
        rationale=example.rationale,
        reply=text,
        thinking=reply.thinking,
        answer=reply.answer,
    )
