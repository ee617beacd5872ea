"""How well the reader of findings tells honest text from bad, on the real questions of VQA-RAD.

    python bench/findings.py FOLDER_OF_VQA_RAD

Each image's questions and answers become statements that are true of it: the reference. The same
questions as other people worded them (the data's paraphrases) become the honest text; the bad ones
are made of it by swapping sides, by wordings that assert nothing or take back, and by mixing up
words.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rarl.replies.concepts import content_words
from rarl.replies.facts import facts_value
from rarl.replies.findings import split_claims
from rarl.replies.lexicon import SHIPPED, stems
from rarl.replies.matching import compare_findings, conflict

SWAPS = {"left": "right", "right": "left", "lt": "rt", "rt": "lt"}
SWAPS |= {"upper": "lower", "lower": "upper", "anterior": "posterior", "posterior": "anterior"}
AUXILIARY = re.compile(r"^(is/are|is|are|was|were|does|do|has|have|did|can) (.+)$")
PLACE = re.compile(r"\b(in|on|at|within|present|seen|visible|visuali[sz]ed|appear|show)\b")
KNOWLEDGE = re.compile(
    r"\b(why|how (?:can|do|would|could|did)|cause|treat\w*|likely|possibl\w+|suggest\w*|if)\b"
)


def statement(question: str, answer: str) -> str | None:
    """Returns a question and its answer as a sentence, or None where no simple one says it."""
    asked = re.sub(r"\s*[-–]\s*yes/no|[?.]", "", " ".join(question.split())).strip().lower()
    said = answer.strip().lower().rstrip(".")
    if not said or KNOWLEDGE.search(asked) or re.search(r"\b(sure|unclear|maybe)\b|\?", said):
        return None
    if said in ("yes", "no") and (match := AUXILIARY.match(asked)):
        return yes_no(match[1].split("/")[0], match[2], said == "yes")
    if said in ("yes", "no"):
        return None
    if match := re.match(r"(?:in )?(?:where|which|what) .*?\b(?:is|are)(?:/are)? (.+)", asked):
        rest = re.sub(r"\b(located|found|seen|most|on|in)\b", "", match[1]).strip()
        if asked.startswith("where") or re.search(r"\b(side|lung|lobe|kidney|half)\b", asked):
            return f"{rest or 'this'} is in the {said}."
        return f"{rest} is {said}."
    if match := re.match(r"how many (.+?)(?: are| is| can|$)", asked):
        return f"There are {said} {match[1]}."
    if re.search(r"\b(modality|plane|type|kind|organ)\b", asked):
        return f"This is {said}."
    return None


def yes_no(verb: str, rest: str, true: bool) -> str | None:
    if match := re.match(r"there (?:evidence of |any |presence of )?(.+)", rest):
        return f"There is {'' if true else 'no '}{re.sub('^(a|an|any) ', '', match[1])}."
    if match := re.match(r"(?:you|we) (?:see|appreciate|identify) (?:any )?(.+)", rest):
        return f"{match[1]} is {'' if true else 'not '}seen."
    words = rest.split()
    kinds, forms = SHIPPED.kinds, SHIPPED.concepts(stems(rest))
    quality = [start for word, start, _ in forms if kinds.get(word) == "quality" and start > 1]
    place = PLACE.search(rest, len(" ".join(words[:2])))
    cut = place.start() if place else len(" ".join(words[:-1]))
    if quality and len(stems(rest)) == len(words):
        cut = min(cut, len(" ".join(words[: quality[0]])))
    subject, predicate = rest[:cut].strip(), rest[cut:].strip()
    if not subject or not predicate:
        return None
    if verb in ("does", "do", "did", "has", "have", "can"):
        link = {"has": "has", "have": "have", "can": "can"}.get(verb, verb)
        if true:
            return f"{subject} {'' if link.startswith('d') else link} {predicate}."
        return f"{subject} {link} not {predicate}."
    return f"{subject} {verb} {'' if true else 'not '}{predicate}."


@dataclass(frozen=True)
class Pair:
    """What is true of an image, and how others word it."""

    image: str
    true: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def reference(self) -> str:
        return " ".join(self.true)

    @property
    def honest(self) -> str:
        return " ".join(self.said)


def read_pairs(folder: Path) -> list[Pair]:
    """Returns each image's statements that have a paraphrase: the question nearby with the same
    answer."""
    rows = json.loads((folder / "trainset.json").read_text(encoding="utf-8"))
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_image[row["image_name"]].append(row)
    found = []
    for image, own in sorted(by_image.items()):
        true, said = [], []
        for one in (row for row in own if row["phrase_type"] == "freeform"):
            for other in (row for row in own if row["phrase_type"] == "para"):
                near = abs(int(one["qid"]) - int(other["qid"])) <= 3
                texts = [statement(row["question"], str(row["answer"])) for row in (one, other)]
                same = str(one["answer"]).lower() == str(other["answer"]).lower()
                if near and same and texts[0] and texts[1] and content_words(texts[0]):
                    true.append(texts[0])
                    said.append(texts[1])
                    break
        if true:
            found.append(Pair(image, tuple(true), tuple(said)))
    return found


def mirrored(text: str) -> str:
    return re.sub(r"[a-zA-Z]+", lambda match: SWAPS.get(match[0].lower(), match[0]), text)


def each(wording: str) -> Callable[[str], str]:
    """Puts a wording around every sentence."""

    def worded(text: str) -> str:
        parts = [
            part.strip() for part in re.split(r"(?<=[a-z0-9])\.(?:\s|$)", text) if part.strip()
        ]
        return " ".join(wording.format(part[0].lower() + part[1:]) for part in parts)

    return worded


def whole(wording: str) -> Callable[[str], str]:
    """Puts a wording around the text."""
    return lambda text: wording.format(text)


def salad(text: str) -> str:
    """The words of content, in any order."""
    found = [word for word in re.findall(r"[\w-]+", text) if content_words(word)]
    random.Random(text).shuffle(found)
    return " ".join(found) + "."


def shuffled(text: str) -> str:
    """All words, in any order, in as many sentences."""
    found = re.findall(r"[\w-]+", text)
    random.Random(text).shuffle(found)
    size = max(1, len(found) // max(1, text.count(".")))
    parts = [found[start : start + size] for start in range(0, len(found), size)]
    return " ".join(" ".join(part) + "." for part in parts)


Bad = dict[str, list[Callable[[str], str]]]
# While these were looked at, the rules were written.
SEEN: Bad = {
    "mirrored": [mirrored],
    "conditional": [
        each("If {}, treatment is needed."),
        each("One would expect that {}."),
        each("Suppose that {}."),
        each("Should it turn out that {}, the ward is called."),
        each("In case {}, a second film helps."),
    ],
    "past": [
        each("On the previous film {}."),
        each("A year ago {}."),
        whole("This is what the scan of last year showed. {}"),
        each("Formerly {}."),
        whole("Before the operation things were as follows. {}"),
    ],
    "other patient": [
        each("In another patient {}."),
        each("In the man in the next bed {}."),
        whole("This is about a textbook case. {}"),
        each("His brother's scan shows that {}."),
        whole("The following belongs to somebody else's file. {}"),
    ],
    "denied": [
        each("It is not true that {}."),
        each("Nothing suggests that {}."),
        each("It is doubtful that {}."),
        each("I cannot confirm that {}."),
        each("There is no reason to say that {}."),
    ],
    "taken back": [
        whole("{} Scrap all of that."),
        whole("{} None of this is true."),
        whole("{} On second thoughts, I was wrong."),
        whole("{} Actually, that was a mistake."),
        whole("{} The opposite is the case."),
    ],
    "salad": [salad],
    "shuffled": [shuffled],
}

# Written when the rules stood. They showed two gaps, sentences put into others ("I refuse to
# believe that") and short refusals ("or rather, no"), which then got a rule.
UNSEEN: Bad = {
    "conditional": [
        each("Granted that {}, one would act."),
        each("Whether {} remains to be settled."),
        each("Were one to find that {}, surgery would follow."),
        each("Only in the event that {} is a drain placed."),
        each("Picture a scan on which {}."),
        each("Let it be assumed that {}."),
        each("A reader could argue that {}."),
        each("It might well be that {}."),
        each("When {}, doctors worry."),
        each("Say that {}; then what?"),
    ],
    "past": [
        each("Back in spring {}."),
        each("Two winters earlier {}."),
        each("As a teenager the patient learnt that {}."),
        each("{} in 2014."),
        whole("Here is what the first visit brought to light. {}"),
        each("The archived film tells us that {}."),
        each("Until last month {}."),
        whole("An old report reads as follows. {}"),
        each("It used to be that {}."),
        each("Prior to therapy {}."),
    ],
    "other patient": [
        each("In the lady opposite {}."),
        each("Her twin's radiograph shows that {}."),
        whole("Let me describe some other folder. {}"),
        each("In most smokers {}."),
        whole("The lecture slide looks like this. {}"),
        each("As for the boy upstairs, {}."),
        each("Mr Smith, unlike ours, was told that {}."),
        whole("Case 12 of the atlas. {}"),
        each("With the neighbour {}."),
        whole("A stranger's pictures got mixed up with these. {}"),
    ],
    "denied": [
        each("It is simply wrong to say that {}."),
        each("Nobody would claim that {}."),
        each("By no means can one say that {}."),
        each("I refuse to believe that {}."),
        each("The idea that {} is absurd."),
        each("It has been disproved that {}."),
        each("There is not a shred of proof that {}."),
        each("It is a myth that {}."),
        each("One must reject the view that {}."),
        each("It is far from certain that {}."),
    ],
    "taken back": [
        whole("{} Please strike these lines."),
        whole("{} Or rather, no."),
        whole("{} I take it all back."),
        whole("{} That description was pure fantasy."),
        whole("{} Everything above should be disregarded."),
        whole("{} Sorry, I looked at something else."),
        whole("{} This was just a joke."),
        whole("{} Not a word of it holds."),
        whole("All of what follows is invented. {}"),
        whole("{} My bad, forget it."),
    ],
}


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Returns the share of pairs, of a good and a bad text, in the right order; ties are half."""
    pairs = [(one > other) + (one == other) / 2 for one in good for other in bad]
    return sum(pairs) / len(pairs)


def measure(pairs: Sequence[Pair], bad: Bad) -> dict[str, tuple[float, float, int]]:
    """Returns the mean of the honest texts and of each kind of bad ones, the AUC of honest against
    it, and the number of texts. Reference and text are of at least two statements."""
    long = [pair for pair in pairs if len(pair.true) >= 2]
    value = {pair: compare_findings(pair.honest, pair.reference).f1 for pair in long}
    rows = {"honest": (sum(value.values()) / len(value), 0.5, len(value))}
    for kind, wordings in bad.items():
        good, found = [], []
        for pair in long:
            for wording in wordings:
                text = wording(pair.honest)
                if kind != "mirrored" or text != pair.honest:
                    good.append(value[pair])
                    found.append(compare_findings(text, pair.reference).f1)
        rows[kind] = (sum(found) / len(found), auc(good, found), len(found))
    return rows


def recognised(pairs: Sequence[Pair]) -> float:
    """Returns the share of single statements whose paraphrase supports them."""
    verdicts = [
        facts_value(said, [true]).supported
        for pair in pairs
        for true, said in zip(pair.true, pair.said, strict=True)
    ]
    return sum(verdicts) / len(verdicts)


def false_alarms(pairs: Sequence[Pair]) -> float:
    """Returns the share of two true statements of one image that are called contradictory."""
    alarms = [
        any(conflict(one, other) for one in split_claims(first) for other in split_claims(second))
        for pair in pairs
        for first, second in combinations(dict.fromkeys([*pair.true, *pair.said]), 2)
    ]
    return sum(alarms) / len(alarms)


def texts_a_second(pairs: Sequence[Pair]) -> float:
    start = time.process_time()
    for pair in pairs:
        compare_findings(pair.honest, pair.reference)
    return len(pairs) / (time.process_time() - start)


def main(folder: str) -> None:
    pairs = read_pairs(Path(folder))
    print(f"{len(pairs)} images, {sum(len(pair.true) for pair in pairs)} pairs")
    print(f"paraphrases recognised {recognised(pairs):.3f}, false alarms {false_alarms(pairs):.4f}")
    print(f"{texts_a_second(pairs):,.0f} texts a second")
    for name, bad in (("seen", SEEN), ("unseen", UNSEEN)):
        for kind, (mean, order, count) in measure(pairs, bad).items():
            print(f"| {kind} | {name} | {mean:.2f} | {order:.2f} | {count} |")


if __name__ == "__main__":
    main(sys.argv[1])
