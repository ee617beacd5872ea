"""A rubric: what a judge reads, what it fills in, and how that becomes a verdict. The rubrics are
data, in `rubrics/`: a prompt, the items of yes and no that it asks for, and which of them count for
which number. A small judge ticks items more reliably than it places a reply on a scale (arXiv
2507.17746), and a tick cannot be out of range."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

REPLY_CHARACTERS = 4000  # of each text of the reply, as escaped
TRUTH_CHARACTERS = 2000  # of each text of the question and the truth
MOST_STEPS = 16  # that a text is cut into; the last holds the rest
CUT = " [...] "
BRACKETS = "<>[]"  # with which models spell their special tokens: <|im_end|>, [INST]
# Categories of control, format, surrogate, private, unassigned and line-separating characters.
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
STEP_END = re.compile(r"(?<=[.!?;])\s+|\s*\n\s*")

# A bound that constrained decoding keeps, so that a verdict always ends. As a pattern, since hosted
# models refuse `maxLength`; of printable ASCII without the two characters that JSON escapes, so
# that a character is at most a token; and below 128, from which xgrammar 0.2 fails to compile a
# pattern's repetition.
REASON_CHARACTERS = 120
REASON_PATTERN = rf"^[ !#-\[\]-~]{{0,{REASON_CHARACTERS}}}$"
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

Message = dict[str, Any]  # of OpenAI's chat completions


class StepList(BaseModel):
    """A list with an entry for each step of a text: `items` of yes and no. `none` is what a number
    is worth that counts in it when the text has no step."""

    model_config = STRICT

    text: Literal["reasoning", "rationale"]
    none: float | None
    items: dict[str, str]


class MeanOfItems(BaseModel):
    """A number of the explanation: the mean of items; in the list `of` the mean over its entries,
    or over those of them that have the item `among`."""

    model_config = STRICT

    items: list[str]
    of: str | None = None
    among: str | None = None


class Rubric(BaseModel):
    """One file of `rubrics/`; checklist.yaml says what each key means."""

    model_config = STRICT

    system: str
    seen: str
    unseen: str
    max_tokens: int
    items: dict[str, str]
    lists: dict[str, StepList] = {}
    correctness: list[list[str]]
    factuality: MeanOfItems
    completeness: MeanOfItems
    relevance: MeanOfItems

    @cached_property
    def version(self) -> str:
        """A hash of the wording and of what follows from it: verdicts of different ones are never
        taken for each other."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @cached_property
    def answer(self) -> type[BaseModel]:
        """What an answer must be: the reason first, since it then has an influence on the ticks."""
        fields: dict[str, Any] = {"reason": str} | dict.fromkeys(self.items, bool)
        for name, steps in self.lists.items():
            ticks: dict[str, Any] = dict.fromkeys(steps.items, bool)
            entry: Any = create_model(name, __config__=STRICT, **ticks)
            fields[name] = list[entry]
        return create_model("Answer", __config__=STRICT, **fields)

    def system_text(self, image: bool) -> str:
        """Returns what a judge is told once: how to grade, and what makes each item true."""
        lines = [f"{name}: {meaning}" for name, meaning in self.items.items()]
        for name, steps in self.lists.items():
            lines.append(f"{name}: a list with one entry for each of the {name} shown, in order:")
            lines += [f"- {item}: {meaning}" for item, meaning in steps.items.items()]
        head = self.system.replace("{image}", self.seen if image else self.unseen)
        return head + "\n".join(lines)

    def messages(self, candidate: Candidate) -> list[Message]:
        """Returns the system message and the user's. All that comes from outside is data to the
        judge: quoted, escaped, bounded, between marks that it cannot forge.

        Image, question and truth come before the reply, so that the candidates of one group share a
        prefix that the server's cache computes once. The reply is shown in parts where these could
        be read, else whole.
        """
        texts: list[tuple[str, str | Sequence[str] | None, int]] = [
            ("question", candidate.question, TRUTH_CHARACTERS),
            ("options", candidate.options, TRUTH_CHARACTERS),
            ("reference_answer", candidate.reference, TRUTH_CHARACTERS),
            ("rationale", candidate.rationale, TRUTH_CHARACTERS),
        ]
        if candidate.readable:
            texts.append(("reply_reasoning", candidate.thinking, REPLY_CHARACTERS))
            texts.append(("reply_answer", candidate.answer, REPLY_CHARACTERS))
        else:
            texts.append(("reply", candidate.reply, REPLY_CHARACTERS))
        listed = {steps.text: name for name, steps in self.lists.items()}
        lines = []
        for name, text, limit in texts:
            if not text and name in ("options", "rationale"):
                continue
            steps = "reasoning" if name in ("reply_reasoning", "reply") else name
            if steps in listed:
                lines.append(f'"{listed[steps]}": {numbered(steps_of(str(text)), limit)}')
            else:
                lines.append(f'"{name}": {literal(text, limit)}')
        data = "{\n" + ",\n".join(lines) + "\n}"
        asked: str | list[Message] = f"<data>\n{data}\n</data>\nGrade the reply."
        if candidate.image:
            shown = {"type": "image_url", "image_url": {"url": candidate.image}}
            asked = [shown, {"type": "text", "text": asked}]
        return [
            {"role": "system", "content": self.system_text(bool(candidate.image))},
            {"role": "user", "content": asked},
        ]

    def lengths(self, candidate: Candidate) -> dict[str, int]:
        """Returns how many entries each list must have for this candidate."""
        reasoning = candidate.thinking if candidate.readable else candidate.reply
        texts = {"reasoning": reasoning, "rationale": candidate.rationale}
        return {name: len(steps_of(texts[steps.text] or "")) for name, steps in self.lists.items()}

    def answer_schema(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the JSON schema of an answer about this candidate, in the subset that constrained
        decoding understands everywhere."""
        reason = {"pattern": REASON_PATTERN, "type": "string"}
        lengths = self.lengths(candidate)
        arrays = {
            name: {
                "type": "array",
                "items": object_of({item: {"type": "boolean"} for item in steps.items}),
                "minItems": lengths[name],
                "maxItems": lengths[name],
            }
            for name, steps in self.lists.items()
        }
        ticks = {name: {"type": "boolean"} for name in self.items}
        return object_of({"reason": reason, **ticks, **arrays})

    def read(self, text: str, candidate: Candidate) -> Verdict:
        """Reads a judge's answer about this candidate: one JSON object with every key that was
        asked for, once, and no other, and with an entry for each step. Anything else is an
        unparsable verdict, never an exception."""
        try:
            tree = json.loads(text, object_pairs_hook=without_repeats)
            filled = self.answer.model_validate(tree).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            return unparsable(f"not a verdict: {where}{first['msg']}")
        except (ValueError, RecursionError) as error:
            return unparsable(f"not a verdict: {error}")
        for name, length in self.lengths(candidate).items():
            if len(filled[name]) != length:
                found = f"{len(filled[name])} entries for {length} steps"
                return unparsable(f"not a verdict: {name}: {found}")
        return self.verdict_of(filled)

    def verdict_of(self, filled: Mapping[str, Any]) -> Verdict:
        """Returns the numbers of an answer that has every key."""
        rungs = [all(filled[item] for item in rung) for rung in self.correctness]
        return Verdict(
            status="scored",
            correctness=float(len(list(itertools.takewhile(bool, rungs)))),
            factuality=self.value_of(self.factuality, filled),
            completeness=self.value_of(self.completeness, filled),
            relevance=self.value_of(self.relevance, filled),
            reason=printable(filled["reason"]),
        )

    def value_of(self, part: MeanOfItems, filled: Mapping[str, Any]) -> float | None:
        """Returns a number of the explanation; None where nothing is known of it."""
        entries = [filled]
        if part.of is not None:
            entries = [e for e in filled[part.of] if part.among is None or e[part.among]]
            if not entries:
                return self.lists[part.of].none
        ticks = [bool(entry[item]) for entry in entries for item in part.items]
        return sum(ticks) / len(ticks)


@cache
def find_rubric(name: str) -> Rubric:
    """Returns the rubric of that name, as in `judge.rubric`."""
    path = Path(__file__).parent / "rubrics" / f"{name}.yaml"
    return Rubric.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


CHECKLIST = find_rubric("checklist")
ITEMS = CHECKLIST.items


def steps_of(text: str) -> list[str]:
    """Returns the sentences and lines of a text; what is beyond `MOST_STEPS` is in the last."""
    steps = [step for part in STEP_END.split(text) if (step := part.strip())]
    return [*steps[: MOST_STEPS - 1], *filter(None, [" ".join(steps[MOST_STEPS - 1 :])])]


def numbered(steps: Sequence[str], limit: int) -> str:
    """Returns steps as a JSON object, from 1 on, of about `limit` characters together."""
    each = limit // max(1, len(steps))
    lines = (f'"{number}": {quoted(step, each)}' for number, step in enumerate(steps, start=1))
    return "{" + ", ".join(lines) + "}"


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


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError where a key occurs twice: json would silently keep
    the last."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def unparsable(reason: str) -> Verdict:
    return Verdict("unparsable", 0.0, 0.0, 0.0, 0.0, printable(reason))


def unreachable(reason: str) -> Verdict:
    return Verdict("unreachable", reason=printable(reason))


def printable(text: str) -> str:
    """Returns one short line that is safe to log: a judge may copy what it read."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= REASON_CHARACTERS else line[: REASON_CHARACTERS - 1] + "…"
