"""The tags of a reply, by the form that its prompt asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rarl.schema import ReplyForm

ONE_TAG: dict[ReplyForm, str] = {"answer": "answer", "look": "look"}  # the one tag of a form
THINK_AND_ANSWER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGGED = {name: re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("answer", "look")}
STRUCTURED = re.compile(
    r"\s*findings:(?P<findings>.+?)impression:(?P<impression>.+)", re.DOTALL | re.IGNORECASE
)
TAG = re.compile(r"</?(think|answer|look)>")


@dataclass(frozen=True)
class Reply:
    """`answer` is None unless exactly one answer is tagged; of a look it is the box. `well_formed`
    asks for the whole reply to be what the form asks for, each tag once, nothing empty, and nothing
    outside the tags; `thinking` is None where it is not."""

    thinking: str | None
    answer: str | None
    well_formed: bool


def parse_reply(text: str, form: ReplyForm = "think") -> Reply:
    """Reads a reply to a prompt that asked for `form`."""
    tags, name = TAG.findall(text), ONE_TAG.get(form, "answer")
    if form in ONE_TAG:
        alone = TAGGED[name].fullmatch(text.strip())
        if alone and len(tags) == 2:
            answer = alone[1].strip()
            return Reply(None, answer, bool(answer))
    elif (whole := THINK_AND_ANSWER.fullmatch(text)) and len(tags) == 4:
        thinking, answer = whole[1].strip(), whole[2].strip()
        complete = form == "think" or is_structured(thinking)
        return Reply(thinking, answer, bool(thinking and answer and complete))
    answers = TAGGED[name].findall(text)
    single = len(answers) == 1 and tags.count(name) == 2
    return Reply(None, answers[0].strip() if single else None, False)


def asks_thinking(form: ReplyForm) -> bool:
    """Whether a prompt of this form asks for thinking."""
    return form not in ONE_TAG


def is_structured(thinking: str) -> bool:
    """Whether the thinking is findings, then an impression, neither empty."""
    match = STRUCTURED.fullmatch(thinking)
    return bool(match and match["findings"].strip() and match["impression"].strip())


def target_text(form: ReplyForm, thinking: str, answer: str) -> str:
    """Returns the reply that a prompt of this form asks for."""
    if form in ONE_TAG:
        return f"<{ONE_TAG[form]}>{answer}</{ONE_TAG[form]}>"
    if form == "structured":
        thinking = f"Findings: {thinking} Impression: {answer}."
    return f"<think>{thinking}</think><answer>{answer}</answer>"
