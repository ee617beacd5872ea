"""What a report of a chest radiograph says of CheXpert's fourteen observations, read by rules.

An observation is present, uncertain or absent, or nothing is told of it. The phrases are data
(`observations.yaml`): how each is named, and cues of denial, doubt and the past with the words that
end their reach, as NegEx and ConText have them (Chapman et al. 2001; Harkema et al. 2009).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from rarl.replies.words import fold

Finding = Literal["present", "uncertain", "absent"]
NO_FINDING = "No Finding"
DEVICES = "Support Devices"  # what is there of these is no finding
# Of several statements on an observation, the first of these counts.
STRONGEST: tuple[Finding, ...] = ("present", "uncertain", "absent")
SENTENCE_END = re.compile(r"(?<!\d)\.|\.(?!\d)|[;!?\n•]")
# "atelectasis or consolidation": either, where neither is denied.
OR_ELSE, OR_BEFORE = re.compile(r"\s+or\b"), re.compile(r"\bor\s+(?:\w+\s+){0,2}$")
LONGEST_SENTENCE = 2000  # characters that are read of one
PHRASES = Path(__file__).with_suffix(".yaml")
Pattern = re.Pattern[str]


@dataclass(frozen=True)
class Phrases:
    """The phrases of a file: by observation how it is named and how it is told absent; by what they
    say, the cues that act on what follows and on what stands before them."""

    mentions: dict[str, Pattern]
    absent: dict[str, Pattern]
    before: dict[str, Pattern]
    after: dict[str, Pattern]
    ignored: Pattern
    breaks: Pattern
    normal: Pattern


@cache
def read_phrases(path: Path = PHRASES) -> Phrases:
    held: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))

    def named(of: Mapping[str, Mapping[str, Sequence[str]]], part: str) -> dict[str, Pattern]:
        return {name: either(one[part]) for name, one in of.items() if part in one}

    observations, cues = held["observations"], held["cues"]
    return Phrases(
        named(observations, "mentions"),
        named(observations, "absent"),
        named(cues, "before"),
        named(cues, "after"),
        *(either(held[name]) for name in ("ignored", "breaks", "normal")),
    )


def either(expressions: Sequence[str]) -> Pattern:
    """Returns a pattern for any of them, none of which begins within a word."""
    # What begins with a mark, as a comma, may stand right behind a word.
    starts = ("" if one.startswith((",", ":")) else r"(?<![\w-])" for one in expressions)
    pairs = zip(starts, expressions, strict=True)
    return re.compile("|".join(f"{start}(?:{one})" for start, one in pairs))


OBSERVATIONS: tuple[str, ...] = (NO_FINDING, *read_phrases().mentions)


@lru_cache(maxsize=4096)
def _labels(report: str) -> tuple[tuple[str, Finding], ...]:
    phrases, told = read_phrases(), dict[str, set[Finding]]()
    normal = False
    for sentence in SENTENCE_END.split(fold(report)):
        text = " ".join(sentence.split())[:LONGEST_SENTENCE]
        normal = normal or bool(phrases.normal.search(text))
        for name, finding in read_sentence(text, phrases):
            told.setdefault(name, set()).add(finding)
    found = {name: next(one for one in STRONGEST if one in its) for name, its in told.items()}
    wrong = [name for name, one in found.items() if one != "absent" and name != DEVICES]
    if (found or normal) and not wrong and (normal or set(found) - {DEVICES}):
        found[NO_FINDING] = "present"
    return tuple(found.items())


def labels_of(report: str) -> dict[str, Finding]:
    """Returns what a report tells of each observation, by its name; of those of which it tells
    nothing, nothing. "No Finding" is present where something is denied, or all is called normal,
    and nothing but devices is present or uncertain."""
    return dict(_labels(report))


def read_sentence(text: str, phrases: Phrases) -> list[tuple[str, Finding]]:
    """Returns each observation that a sentence tells of, once for each mention."""
    found: list[tuple[str, Finding]] = [
        (name, "absent") for name, its in phrases.absent.items() if its.search(text)
    ]
    # Blanks of the same length, so that places stay.
    read = phrases.ignored.sub(lambda match: " " * len(match[0]), text)
    denied = {name for name, _ in found}
    for name, its in phrases.mentions.items():
        for match in its.finditer(text):
            if name in denied and phrases.absent[name].search(match[0]):
                continue
            finding = finding_at(read, match.start(), match.end(), phrases)
            if finding is not None:
                found.append((name, finding))
    return found


def finding_at(text: str, start: int, end: int, phrases: Phrases) -> Finding | None:
    """Returns what a sentence says of the mention at these places; None where it tells of the past
    alone, or of what something is not. Of the cues before it the nearest counts, if no break lies
    between."""
    lead = text[:start]
    for match in phrases.breaks.finditer(lead):
        lead = " " * match.end() + lead[match.end() :]
    rest = text[end:]
    if stop := phrases.breaks.search(rest):
        rest = rest[: stop.start()]
    ahead = {
        kind: max((match.end() for match in its.finditer(lead)), default=-1)
        for kind, its in phrases.before.items()
    }
    behind = {kind for kind, its in phrases.after.items() if its.search(rest)}
    nearest = max(ahead, key=lambda kind: ahead[kind])
    before = nearest if ahead[nearest] >= 0 else None
    if "absent" in behind and "uncertain" not in behind:
        return "absent"
    if "uncertain" in behind:
        return "uncertain"
    if before == "untold" or "untold" in behind:
        return "present" if "present" in behind else None
    if before == "absent" or phrases.before["absent"].search(text[start:end]):
        return "absent"
    either_one = OR_ELSE.match(rest) or OR_BEFORE.search(lead)
    return "uncertain" if before == "uncertain" or either_one else "present"


def agreement(given: str | None, reference: str) -> float | None:
    """Returns the F1 of a report's observations with their polarity, the mean over the observations
    that either report tells of: one is 1 where both say the same of it, else 0. Returns None where
    the reference tells of none."""
    true = labels_of(reference)
    if not true:
        return None
    named = labels_of(given or "")
    either_tells = true.keys() | named.keys()
    return sum(true.get(one) == named.get(one) for one in either_tells) / len(either_tells)
