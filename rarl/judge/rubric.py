"""The rubric: what a judge reads, the checklist of yes and no that it fills in, and how that
becomes a verdict. A small judge ticks a checklist more reliably than it places a reply on a scale
(arXiv 2507.17746), and a checklist cannot hold a number that is out of range."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

REPLY_CHARACTERS = 4000  # of each text of the reply, as escaped
TRUTH_CHARACTERS = 2000  # of each text of the question and the truth
CUT = " [...] "
BRACKETS = "<>[]"  # with which models spell their special tokens: <|im_end|>, [INST]
# Categories of control, format, surrogate, private, unassigned and line-separating characters.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")

# A bound that constrained decoding keeps, so that a verdict always ends. As a pattern, since hosted
# models refuse `maxLength`; of printable ASCII without the two characters that JSON escapes, so
# that a character is at most a token; and below 128, from which xgrammar 0.2 fails to compile a
# pattern's repetition.
REASON_CHARACTERS = 120
REASON_PATTERN = rf"^[ !#-\[\]-~]{{0,{REASON_CHARACTERS}}}$"

WORDING = yaml.safe_load(Path(__file__).with_name("rubric.yaml").read_text(encoding="utf-8"))
ITEMS: dict[str, str] = WORDING["items"]  # item: what makes it true
SYSTEM = WORDING["system"] + "\n".join(f"{name}: {meaning}" for name, meaning in ITEMS.items())


class Checklist(BaseModel):
    """What a judge answers, in this order: the reason first, since it then has an influence on the
    ticks. `ITEMS` tells the judge what makes each item true."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reason: str
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


def schema() -> dict[str, Any]:
    """Returns the checklist's JSON schema, in the subset that constrained decoding understands
    everywhere."""
    reason = {"pattern": REASON_PATTERN, "type": "string"}
    properties = {"reason": reason} | {name: {"type": "boolean"} for name in ITEMS}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


RUBRIC_VERSION = hashlib.sha256(json.dumps([SYSTEM, schema()]).encode()).hexdigest()[:12]


def judge_messages(candidate: Candidate) -> list[dict[str, str]]:
    """Returns the system message and the user's. All that comes from outside is data to the judge:
    quoted, escaped, bounded, between marks that it cannot forge.

    Question and truth come before the reply, so that the candidates of one group share a prefix
    that the server's cache computes once. The reply is shown in parts where these could be read,
    else whole.
    """
    truth = (candidate.question, candidate.options, candidate.reference, candidate.rationale)
    names = ("question", "options", "reference_answer", "rationale")
    reply = {"reply": candidate.reply}
    if candidate.thinking is not None and candidate.answer is not None:
        reply = {"reply_reasoning": candidate.thinking, "reply_answer": candidate.answer}
    lines = [
        f'"{name}": {literal(text, TRUTH_CHARACTERS)}'
        for name, text in zip(names, truth, strict=True)
        if text or name in ("question", "reference_answer")
    ]
    lines += [f'"{name}": {quoted(text, REPLY_CHARACTERS)}' for name, text in reply.items()]
    data = "{\n" + ",\n".join(lines) + "\n}"
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"<data>\n{data}\n</data>\nGrade the reply."},
    ]


def literal(text: str | Sequence[str] | None, limit: int) -> str:
    """Returns a text, or a list of texts, in JSON."""
    if isinstance(text, str):
        return quoted(text, limit)
    return "[" + ", ".join(quoted(one, limit) for one in text or ()) + "]"


def quoted(text: str, limit: int) -> str:
    """Returns a JSON string of at most `limit` characters and a mark. Reading it as JSON gives the
    text back, if it was not cut; of a long text three quarters of the limit are its head and the
    rest its tail."""
    pieces = [escaped(char) for char in text]
    if sum(map(len, pieces)) > limit:
        pieces = [*within(pieces, limit * 3 // 4), CUT, *within(pieces[::-1], limit // 4)[::-1]]
    return '"' + "".join(pieces) + '"'


def within(pieces: list[str], limit: int) -> list[str]:
    """Returns the first pieces whose characters number at most `limit`."""
    lengths = itertools.accumulate(map(len, pieces))
    return [piece for piece, length in zip(pieces, lengths, strict=True) if length <= limit]


def escaped(char: str) -> str:
    """Returns one character as it stands within a JSON string; whatever could begin a special
    token, is invisible or moves other text becomes \\uXXXX."""
    if char in BRACKETS:
        return f"\\u{ord(char):04x}"
    return json.dumps(char)[1:-1] if char in '"\\' or unicodedata.category(char) in UNSEEN else char


def parse_verdict(text: str) -> Verdict:
    """Reads a judge's answer: one JSON object with every key of the checklist, once, and no other.
    Anything else is an unparsable verdict, never an exception."""
    try:
        tree = json.loads(text, object_pairs_hook=without_repeats)
        return verdict_of(Checklist.model_validate(tree))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        return unparsable(f"not a verdict: {where}{first['msg']}")
    except (ValueError, RecursionError) as error:
        return unparsable(f"not a verdict: {error}")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError where a key occurs twice: json would silently keep
    the last."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def verdict_of(checklist: Checklist) -> Verdict:
    """Returns the numbers of a checklist: each part of the explanation is the mean of its two
    items."""
    return Verdict(
        status="scored",
        correctness=correctness_of(checklist),
        factuality=(checklist.findings_true + checklist.nothing_invented) / 2,
        completeness=(checklist.names_key_finding + checklist.names_all_findings) / 2,
        relevance=(checklist.addresses_question + checklist.no_padding) / 2,
        reason=printable(checklist.reason),
    )


def correctness_of(checklist: Checklist) -> float:
    """Returns the scale of the method's authors: 0 off topic, 1 mismatched, 2 reasonable with minor
    errors, 3 correct with a good explanation."""
    if not checklist.on_topic:
        return 0.0
    if not checklist.answer_agrees:
        return 1.0
    return 3.0 if checklist.no_error and checklist.explanation_supports_answer else 2.0


def unparsable(reason: str) -> Verdict:
    return Verdict("unparsable", 0.0, 0.0, 0.0, 0.0, printable(reason))


def unreachable(reason: str) -> Verdict:
    return Verdict("unreachable", reason=printable(reason))


def printable(text: str) -> str:
    """Returns one short line that is safe to log: a judge may copy what it read."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 1] + "…"
