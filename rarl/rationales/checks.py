"""What becomes of a teacher's reply: it is kept, or left out for one reason, the first that holds.

What is known of an image are the facts of its row, and what all questions about it say with their
answers, its own included: here they tell nobody an answer, they find out what is false.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rarl.data.parquet import ParquetRows
from rarl.prepare.facts import agreed, read_questions
from rarl.prepare.leaks import clear_language, language_identifier
from rarl.prepare.statements import state
from rarl.prompts import SPECIAL_TOKEN
from rarl.rationales.teacher import WORDING, Said
from rarl.replies.answers import is_right
from rarl.replies.concepts import content_words
from rarl.replies.facts import facts_value
from rarl.replies.findings import split_clauses
from rarl.replies.grading import MODALITIES, names_any, read_text
from rarl.replies.tags import TAG
from rarl.replies.tricks import addresses_the_judge, without_answers
from rarl.replies.words import fold, length_in_words
from rarl.schema import Example

Outcome = Literal[
    "kept",
    "unreachable",  # no reply could be had: asked again by the next start
    "bad image",  # nothing could be shown
    "refused",  # by the server or the model
    "cut off",  # at the longest reply
    "unreadable",  # not one explanation and one answer
    "asks for boxes",  # which no teacher's reply is compared by
    "wrong answer",
    "addresses a judge",  # instructions, hidden characters, made-up turns
    "was told",  # says that the answer was known before
    "other language",
    "too short",
    "too long",
    "nothing but the answer",
    "contradicts facts",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
# Words. Below, nothing is explained; above, it is more than a small model is to learn to say.
SHORTEST, LONGEST = 6, 200
SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*")
LANGUAGE_WORDS = 8  # of a sentence whose language is looked at by itself
UNLIKELY = 0.02  # a probability of the wanted language, by py3langid, that is none
OTHER_LETTERS = 2  # of another script in a text, which a symbol may be
TOLD = re.compile("|".join(WORDING["told"]))


@dataclass(frozen=True)
class CheckedReply:
    """A reply and what becomes of it. `why` says more, where there is more to say."""

    outcome: Outcome
    why: str = ""
    explanation: str | None = None
    answer: str | None = None


def known_of(data: ParquetRows) -> list[tuple[str, ...]]:
    """Returns for each row the sentences that are known to be true of its image."""
    questions = read_questions(data, range(len(data)))
    stated = [state(one.question, one.answer) for one in questions]
    by_image: dict[str, dict[str, None]] = defaultdict(dict)
    for one, statement in zip(questions, agreed(questions, stated), strict=True):
        given = [*one.given, *([statement.sentence] if statement else [])]
        by_image[one.image_id].update(dict.fromkeys(given))
    return [tuple(by_image[one.image_id]) for one in questions]


def usual_language(data: ParquetRows) -> str:
    """Returns the language in which most questions are that tell theirs, else English."""
    clear = Counter(one for text in data.column("question") for one in clear_language(text))
    return clear.most_common(1)[0][0] if clear else "en"


def check(
    said: Said,
    parts: tuple[str | None, str | None],
    example: Example,
    known: Sequence[str],
    usual: str = "en",
) -> CheckedReply:
    """Returns what becomes of a reply about an example. `parts` are its explanation and its answer,
    `known` are sentences that are true of the image, `usual` is the language of a question that
    does not tell its own."""
    if said.status != "said":
        return CheckedReply(said.status, said.text if said.status != "cut off" else "")
    explanation, answer = parts
    if not explanation or not answer or TAG.search(explanation) or SPECIAL_TOKEN.search(said.text):
        return CheckedReply("unreadable")
    outcome, why = fault_of(said.text, explanation, answer, example, known, usual)
    return CheckedReply(outcome, why, explanation, answer)


def fault_of(
    reply: str,
    explanation: str,
    answer: str,
    example: Example,
    known: Sequence[str],
    usual: str,
) -> tuple[Outcome, str]:
    """Returns the first fault of a reply that has its form, with more about it, or "kept"."""
    if example.answer_type == "boxes":
        # Nothing tells in whose units a teacher has written them.
        return "asks for boxes", ""
    kind, options, also = example.answer_type, example.options, example.also_right
    if not is_right(answer, example.answer, kind, options=options, also_right=also):
        return "wrong answer", answer
    if addresses_the_judge(reply):
        return "addresses a judge", ""
    if told := TOLD.search(fold(explanation)):
        return "was told", told[0]
    if foreign := other_language(explanation, example.question, usual):
        return "other language", foreign
    words = length_in_words(explanation)
    if not SHORTEST <= words <= LONGEST:
        return "too short" if words < SHORTEST else "too long", f"{words:.0f} words"
    if not content_words(without_answers(explanation, example.question, [example.answer])):
        return "nothing but the answer", ""
    if against := contradicted(explanation, example, known):
        return "contradicts facts", against
    return "kept", ""


def contradicted(explanation: str, example: Example, known: Sequence[str]) -> str:
    """Returns something known of the image that an explanation contradicts, or nothing."""
    verdicts = facts_value(explanation, known, example.question).verdicts
    for fact, verdict in zip(known, verdicts, strict=True):
        if verdict < 0:
            return fact
    said = " ".join(read_text(one.text) for one in split_clauses(explanation) if not one.negated)
    named = [group for group in MODALITIES if names_any(f" {said} ", group)]
    if example.modality:
        own = [
            group for group in MODALITIES if names_any(f" {read_text(example.modality)} ", group)
        ]
        if own and named and own[0] not in named:
            return f"The modality is {example.modality}."
    return ""


def other_language(text: str, question: str, usual: str) -> str:
    """Returns the language, or a letter of the script, that a text has and its question has not;
    nothing where the two agree or where it is not clear."""
    wanted = (clear_language(question) or [usual])[0]
    # Terms and signs are Latin and Greek in any language.
    scripts = {script(letter) for letter in question} | {"", "LATIN", "GREEK", "MICRO"}
    letters = [one for one in text if script(one) not in scripts]
    if len(letters) > OTHER_LETTERS:
        return letters[0]
    sentences = [one for one in SENTENCE_END.split(text) if len(one.split()) >= LANGUAGE_WORDS]
    for part in (text, *sentences):
        (first, _), *_ = ranked = language_identifier().rank(part)
        if first != wanted and dict(ranked).get(wanted, 0.0) < UNLIKELY:
            return str(first)
    return ""


def script(letter: str) -> str:
    """Returns the script of a letter, as Unicode names it; of other characters nothing."""
    return unicodedata.name(letter, "").split(" ")[0] if letter.isalpha() else ""
