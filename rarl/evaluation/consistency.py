"""How the replies to one image's questions fit together, and which questions ask for perception and
which for reasoning.

A model that reasons is right about an image as a whole: of a question whose related ones are
answered right, the answer should be right, and hardly where one of them is wrong. CURE (Chen et al.
2024, "Measuring and improving chain-of-thought reasoning in vision-language models", section 3)
asks that of a conclusion and the steps that lead to it, forward and backward. Medical data sets
have no such steps: here the related questions are the others about the image, or of a question for
reasoning, those for perception, where there are any (RADAR, Nie et al. 2026, keeps the two
abilities apart).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from rarl.evaluation.metrics import RELATED, WORDS
from rarl.prepare.fingerprint import answer_key, text_key
from rarl.prepare.negatives import near_pairs
from rarl.replies.answers import answers_alike
from rarl.replies.concepts import content_words, is_slot, opposites
from rarl.samples import Sample
from rarl.schema import Example

ABILITY = "ability"  # a column of its own: what a question asks for
PERCEPTION, REASONING = ABILITIES = ("perception", "reasoning")
# The columns of published data sets that tell the kind of a question, the first that is there.
KIND_COLUMNS = ("question_type", "content_type", "medical_task")
KINDS: dict[str, str] = {
    kind: ability for ability, kinds in WORDS["abilities"].items() for kind in kinds
}
BETWEEN_KINDS = re.compile(r"[,;/|]")
# The metrics of a reply that tell of other replies.
FORWARD, ASTRAY, BACKWARD, PARAPHRASES = RELATED

Asked = tuple[tuple[str, str, str, str], ...]  # image, question, answer, options: their keys


def ability_of(example: Example) -> str | None:
    """Returns whether a question asks for perception or for reasoning, by the column that tells its
    kind; None where that is not known, or where it is of kinds of both."""
    column = next((name for name in KIND_COLUMNS if example.extra.get(name)), None)
    kinds = BETWEEN_KINDS.split(example.extra[column] or "") if column else []
    found = {KINDS.get(text_key(kind)) for kind in kinds}
    return found.pop() if len(found) == 1 else None


def consistency(samples: Sequence[Sample]) -> list[dict[str, float]]:
    """Returns the metrics of RELATED for each reply, those that apply to it, in [0, 1].
    `samples` are of one model and one seed; replies are held against those of the same number.

    Related to a question are the others about its image that are not the same in other words; to
    one for reasoning, those for perception, where there are any.
    """
    by_image: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for place, one in enumerate(samples):
        by_image[one.number, one.example.dataset, one.example.image_id].append(place)
    alike: dict[int, set[int]] = defaultdict(set)
    asked = tuple(map(asked_of, samples))
    for first, second in paraphrases(asked):
        alike[first].add(second)
        alike[second].add(first)
    seen = [ability_of(one.example) == PERCEPTION for one in samples]
    found: list[dict[str, float]] = [{} for _ in samples]
    for places in by_image.values():
        for place in places if len(places) > 1 else ():
            own = asked[place][1]
            related = [
                other for other in places if asked[other][1] != own and other not in alike[place]
            ]
            if ability_of(samples[place].example) == REASONING:
                related = [other for other in related if seen[other]] or related
            found[place] = fit(samples[place], [samples[other] for other in related])
    for place, others in alike.items():
        if others:
            same = [answered_alike(samples[place], samples[other]) for other in sorted(others)]
            found[place][PARAPHRASES] = sum(same) / len(same)
    return found


def fit(sample: Sample, related: Sequence[Sample]) -> dict[str, float]:
    """Returns how a reply fits those to its related questions, if there are any."""
    if not related:
        return {}
    right = sample.rewards["correct"] or 0.0
    all_right = all(one.rewards["correct"] for one in related)
    found = {FORWARD if all_right else ASTRAY: right}
    return found | ({BACKWARD: float(all_right)} if right else {})


def answered_alike(first: Sample, second: Sample) -> bool:
    """Tells whether two replies give the same answer, right or wrong; one without a readable answer
    agrees with nothing."""
    one, other, example = first.reply.answer, second.reply.answer, first.example
    if one is None or other is None:
        return False
    return answers_alike(
        one,
        other,
        example.answer,
        example.answer_type,
        options=example.options,
        frame=first.prompt.frame,
    )


def asked_of(sample: Sample) -> tuple[str, str, str, str]:
    """Returns what tells whether two questions are one in other words."""
    one = sample.example
    image = f"{sample.number}/{one.dataset}/{one.image_id}"
    options = "\n".join(sorted(map(text_key, one.options or ())))
    return image, text_key(one.question), answer_key(one.answer), options


@lru_cache(maxsize=64)
def paraphrases(asked: Asked) -> list[tuple[int, int]]:
    """Returns every two questions about the same image with the same reference answer and options
    that are one in near words. What names another side, level or number is another question, and so
    is what names the opposite."""
    questions = [question for _, question, _, _ in asked]
    pairs = near_pairs(questions, [image for image, *_ in asked])
    return [
        (first, second)
        for first, second in pairs
        if asked[first][2:] == asked[second][2:]
        and same_subject(questions[first], questions[second])
    ]


def same_subject(first: str, second: str) -> bool:
    """Tells whether two questions name the same sides, levels and numbers, and no opposites."""
    one, other = content_words(first), content_words(second)
    slots = [{word for word in words if is_slot(word)} for words in (one, other)]
    return slots[0] == slots[1] and not any(opposites(word) & other for word in one - other)
