"""What a judge is asked about, and candidates and verdicts as JSON between processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, with_config

from rarl.replies.tags import parse_reply
from rarl.schema import Example, Prompt, Verdict

MAX_BATCH = 64  # candidates of one request
MAX_CHARACTERS = 100_000  # of one candidate's texts together
# In JSON the key may be left out.
Text = Annotated[str | None, Field(default=None)]
Texts = Annotated[tuple[str, ...] | None, Field(default=None)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Candidate:
    """One reply to be judged, as text alone: the judge never sees the image.

    `reply` is the whole reply as sampled; `thinking` and `answer` are what was read from it, None
    where its tags are not what the prompt asked for. `reference` and `rationale` are the truth.
    """

    question: str
    options: Texts
    reference: str
    rationale: Text
    reply: str
    thinking: Text
    answer: Text

    def characters(self) -> int:
        """Returns the length of all texts together."""
        _, options, *texts = asdict(self).values()
        return sum(len(text or "") for text in (self.question, *(options or ()), *texts))


def candidate_of(example: Example, prompt: Prompt, text: str) -> Candidate:
    """Returns the reply `text` to `prompt`, as the judge is shown it."""
    truth = (example.question, example.options, example.answer, example.rationale)
    reply = parse_reply(text, prompt.form)
    return Candidate(*truth, reply=text, thinking=reply.thinking, answer=reply.answer)


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Returns the candidate as JSON's types. Half a surrogate pair, which a sampler may cut off, is
    no valid JSON text and becomes a question mark."""
    text = json.dumps(asdict(candidate), ensure_ascii=False).encode(errors="replace")
    values: dict[str, Any] = json.loads(text)
    return values


class ScoreRequest(BaseModel):
    """The body of `POST /score`."""

    model_config = ConfigDict(extra="forbid")

    candidates: list[Candidate]


def require_all_keys(verdict: Any) -> Any:
    """Raises ValueError for JSON that has other keys than a Verdict: without its scores it would
    pass for one that has none."""
    names = {field.name for field in fields(Verdict)}
    if isinstance(verdict, dict) and set(verdict) != names:
        raise ValueError(f"expected the keys {', '.join(sorted(names))}")
    return verdict


class ScoreReply(BaseModel):
    """The answer to a ScoreRequest, in its order."""

    verdicts: list[Annotated[Verdict, BeforeValidator(require_all_keys)]]


def reply_of(verdicts: Sequence[Verdict]) -> bytes:
    """Returns a ScoreReply as JSON."""
    return ScoreReply(verdicts=list(verdicts)).model_dump_json().encode()
