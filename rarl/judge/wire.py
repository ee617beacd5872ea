"""What travels between RARL and its judge application: candidates in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

MAX_BATCH = 64  # candidates of one request
MAX_CHARACTERS = 100_000  # of one candidate's texts together
Part = Annotated[float, Field(ge=0, le=1)]


class CandidateMessage(BaseModel):
    """A Candidate in JSON."""

    model_config = ConfigDict(extra="forbid")

    question: str
    options: list[str] | None = None
    reference: str
    rationale: str | None = None
    reply: str
    thinking: str | None = None
    answer: str | None = None

    def candidate(self) -> Candidate:
        values = self.model_dump()
        return Candidate(
            **{**values, "options": tuple(self.options) if self.options is not None else None}
        )

    def characters(self) -> int:
        texts = (self.question, *(self.options or ()), self.reference, self.rationale, self.reply)
        return sum(len(text or "") for text in (*texts, self.thinking, self.answer))


class VerdictMessage(BaseModel):
    """A Verdict in JSON."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["scored", "unparsable", "unreachable"]
    correctness: Annotated[float, Field(ge=0, le=3)] | None
    factuality: Part | None
    completeness: Part | None
    relevance: Part | None
    reason: str

    def verdict(self) -> Verdict:
        return Verdict(**self.model_dump())


class ScoreRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    candidates: list[CandidateMessage]


class ScoreReply(BaseModel):
    """In the order of the request."""

    verdicts: list[VerdictMessage]


def reply_of(verdicts: Sequence[Verdict]) -> bytes:
    """A ScoreReply as JSON."""
    return (
        ScoreReply(verdicts=[VerdictMessage(**asdict(verdict)) for verdict in verdicts])
        .model_dump_json()
        .encode()
    )


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """Half a surrogate pair, which a sampler may cut off, is no valid JSON text and becomes a
    question mark."""
    return {key: sendable(value) for key, value in asdict(candidate).items()}


def sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return [sendable(one) for one in value] if isinstance(value, list | tuple) else value
