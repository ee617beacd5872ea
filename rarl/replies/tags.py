"""The tags of a reply, by the form that its prompt asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rarl.schema import ReplyForm

THINK_AND_ANSWER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
ANSWER_ALONE = re.compile(r"\s*<answer>(.*?)</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
STRUCTURED = re.compile(
    r"\s*findings:(?P<findings>.+?)impression:(?P<impression>.+)", re.DOTALL | re.IGNORECASE
)
TAG = re.compile(r"</?(think|answer)>")


@dataclass(frozen=True)
class Reply:
    """`answer` is None unless exactly one answer is tagged. `well_formed` asks for the whole reply
    to be what the form asks for, each tag once, nothing empty, and nothing outside the tags;
    `thinking` is None where it is not."""

    thinking: str | None
    answer: str | None
    well_formed: bool


def parse_reply(text: str, form: ReplyForm = "think") -> Reply:
    """Reads a reply to a prompt that asked for `form`."""
    tags = TAG.findall(text)
    if form == "answer":
        alone = ANSWER_ALONE.fullmatch(text)
        if alone and len(tags) == 2:
            answer = alone[1].strip()
            return Reply(None, answer, bool(answer))
    elif (whole := THINK_AND_ANSWER.fullmatch(text)) and len(tags) == 4:
        thinking, answer = whole[1].strip(), whole[2].strip()
        complete = form == "think" or is_structured(thinking)
        return Reply(thinking, answer, bool(thinking and answer and complete))
    answers = ANSWER.findall(text)
    single = len(answers) == 1 and tags.count("answer") == 2
    return Reply(None, answers[0].strip() if single else None, False)


def is_structured(thinking: str) -> bool:
    """Whether the thinking is findings, then an impression, neither empty."""
    match = STRUCTURED.fullmatch(thinking)
    return bool(match and match["findings"].strip() and match["impression"].strip())


def target_text(form: ReplyForm, thinking: str, answer: str) -> str:
    """Returns the reply that a prompt of this form asks for."""
    if form == "answer":
        return f"<answer>{answer}</answer>"
    if form == "structured":
        thinking = f"Findings: {thinking} Impression: {answer}."
    return f"<think>{thinking}</think><answer>{answer}</answer>"
