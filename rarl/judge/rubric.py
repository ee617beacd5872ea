"""The rubric: a checklist of yes and no that a judge fills in, and how it becomes a verdict.

A small judge ticks a checklist more reliably than it places a reply on a scale (arXiv 2507.17746),
and a checklist cannot hold a number that is out of range. Correctness keeps the scale of the
method's authors: 0 off topic, 1 mismatched, 2 reasonable with minor errors, 3 correct with a good
explanation.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rarl.schema import Verdict

# A bound that constrained decoding keeps, so that a verdict always ends. As a pattern, since hosted
# models refuse `maxLength`; of printable ASCII without the two characters that JSON escapes, so
# that a character is at most a token; and below 128, from which xgrammar 0.2 fails to compile a
# pattern's repetition.
REASON_CHARACTERS = 120
REASON_PATTERN = rf"^[ !#-\[\]-~]{{0,{REASON_CHARACTERS}}}$"


class Checklist(BaseModel):
    """What a judge answers, in this order: the reason first, since what is written first can be
    thought about."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reason: Annotated[str, Field(json_schema_extra={"pattern": REASON_PATTERN})]
    on_topic: bool
    answer_agrees: bool
    no_error: bool
    explanation_supports_answer: bool
    findings_true: bool
    nothing_invented: bool
    names_key_finding: bool
    names_all_findings: bool
    addresses_question: bool
    no_padding: bool


# Item → what makes it true. The judge reads these lines; the names alone would leave too much open.
ITEMS: dict[str, str] = {
    "on_topic": "the reply is about this question",
    "answer_agrees": "its final answer means the same as the reference answer",
    "no_error": "it makes no medical or logical error",
    "explanation_supports_answer": "its reasoning leads to its own answer",
    "findings_true": "every finding it states agrees with the rationale",
    "nothing_invented": "it states nothing that the rationale does not support",
    "names_key_finding": "it names the finding that decides the answer",
    "names_all_findings": "it names every finding of the rationale",
    "addresses_question": "its reasoning is about what was asked",
    "no_padding": "no repetition, filler, or words about grading",
}


def correctness_of(checklist: Checklist) -> float:
    """0 to 3, the authors' scale."""
    if not checklist.on_topic:
        return 0.0
    if not checklist.answer_agrees:
        return 1.0
    return 3.0 if checklist.no_error and checklist.explanation_supports_answer else 2.0


def verdict_of(checklist: Checklist) -> Verdict:
    """Each part of the explanation is the mean of its two items."""
    return Verdict(
        status="scored",
        correctness=correctness_of(checklist),
        factuality=(checklist.findings_true + checklist.nothing_invented) / 2,
        completeness=(checklist.names_key_finding + checklist.names_all_findings) / 2,
        relevance=(checklist.addresses_question + checklist.no_padding) / 2,
        reason=printable(checklist.reason),
    )


def parse_verdict(text: str) -> Verdict:
    """Reads a judge's answer: one JSON object with every key of the checklist, once, and no other.
    Anything else is an unparsable verdict, never an exception."""
    try:
        return verdict_of(
            Checklist.model_validate(json.loads(text, object_pairs_hook=without_repeats))
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return unparsable(f"not a verdict: {key + ': ' if key else ''}{first['msg']}")
    except (ValueError, RecursionError) as error:
        return unparsable(f"not a verdict: {error}")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: of two equal keys json would silently keep the
    last."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def unparsable(reason: str) -> Verdict:
    return Verdict("unparsable", 0.0, 0.0, 0.0, 0.0, printable(reason))


def unreachable(reason: str) -> Verdict:
    return Verdict("unreachable", reason=printable(reason))


def printable(text: str) -> str:
    """One short line that is safe to log: a judge may copy what it read."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 1] + "…"


def schema() -> dict[str, Any]:
    """The JSON schema of the checklist, in the subset that constrained decoding understands
    everywhere."""
    properties = {
        name: {key: value for key, value in entry.items() if key != "title"}
        for name, entry in Checklist.model_json_schema()["properties"].items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
