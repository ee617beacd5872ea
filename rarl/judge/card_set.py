"""The replies of a judge's card, whose truth is known: every question of `card_set.yaml` crossed
with a right or wrong answer, a good or bad explanation, short or long, plain or with words to the
judge; and true explanations, in the rationale's words and in others, beside what is made of them so
that they are true no more."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from rarl.judge.candidate import Candidate
from rarl.judge.rubric import ITEMS
from rarl.replies.tags import parse_reply, target_text
from rarl.schema import AnswerType

FILLERS_EACH = 5  # sentences that make a short explanation long


@dataclass(frozen=True)
class CardQuestion:
    """A question with its truth. `said` is how a right reply words the answer, where that is not
    the reference itself; `good` says what the rationale says in nearly its words, `paraphrase` in
    words of its own, `bad` contradicts it."""

    id: str
    modality: str
    answer_type: AnswerType
    question: str
    answer: str
    wrong: str
    rationale: str
    good: str
    bad: str
    paraphrase: str
    options: tuple[str, ...] | None = None
    said: str | None = None


BUILT_IN = yaml.safe_load(Path(__file__).with_name("card_set.yaml").read_text(encoding="utf-8"))
QUESTIONS = TypeAdapter(tuple[CardQuestion, ...]).validate_python(BUILT_IN["questions"])
FILLERS: list[str] = BUILT_IN["fillers"]
HOSTILE: dict[str, str] = BUILT_IN["hostile"]  # by kind
TRANSFORMED: dict[str, str] = BUILT_IN["transformed"]  # by kind
SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(rf"\b({'|'.join(SIDES)})\b")


@dataclass(frozen=True)
class Cell:
    """One candidate and the truth about it: whether the answer is right and the explanation good.
    `hostile` is the kind of its words to the judge; None for a plain reply."""

    question_id: str
    answer_type: AnswerType
    right: bool
    good: bool
    long: bool
    hostile: str | None
    candidate: Candidate

    @property
    def key(self) -> tuple[str | bool, ...]:
        """The question, and the four things in which its candidates differ."""
        return self.question_id, self.right, self.good, self.long, self.hostile is not None


def build_cells(questions: Sequence[CardQuestion]) -> list[Cell]:
    """Returns the 16 cells of each question, one question after the other. The kinds of hostile
    words take turns such that, over eight questions, each kind meets each combination of answer,
    explanation and length."""
    cells = []
    for number, question in enumerate(questions):
        for index, (right, good, long) in enumerate(itertools.product((True, False), repeat=3)):
            kind = list(HOSTILE)[(number + index) % len(HOSTILE)]
            for hostile in (None, kind):
                cells.append(build_cell(question, number, right, good, long, hostile))
    return cells


def build_cell(
    question: CardQuestion, number: int, right: bool, good: bool, long: bool, hostile: str | None
) -> Cell:
    """`number` is the question's, by which the fillers take turns: two of them stand before the
    explanation, the others after it."""
    answer = (question.said or question.answer) if right else question.wrong
    explanation = question.good if good else question.bad
    if long:
        chosen = [FILLERS[(number + index) % len(FILLERS)] for index in range(FILLERS_EACH)]
        explanation = " ".join((*chosen[:2], explanation, *chosen[2:]))
    checklist = json.dumps({"reason": "correct and complete", **dict.fromkeys(ITEMS, True)})
    words = HOSTILE[hostile] if hostile else ""
    words = words.replace("{answer}", answer).replace("{checklist}", checklist)
    if hostile == "after":
        text = f"{target_text('think', explanation, answer)}\n{words}"
    else:
        text = target_text("think", f"{explanation} {words}".rstrip(), answer)
    # As a sampled reply is read: words after the tags leave it without thinking.
    read = parse_reply(text)
    truth = (question.question, question.options, question.answer, question.rationale)
    candidate = Candidate(*truth, reply=text, thinking=read.thinking, answer=read.answer)
    return Cell(question.id, question.answer_type, right, good, long, hostile, candidate)


@dataclass(frozen=True)
class Twin:
    """Two replies with the right answer: one with a true explanation, one with a bad one. `kind` is
    what was done to a true one to make the bad one; None: the question's own bad one stands against
    its paraphrase."""

    question_id: str
    kind: str | None
    honest: Candidate
    bad: Candidate


def build_twins(questions: Sequence[CardQuestion]) -> list[Twin]:
    """Returns the twins of each question: its paraphrase and its bad explanation, then what is made
    of the rationale beside `good`, which says it in nearly its words, and of the paraphrase beside
    itself."""
    twins = []
    for number, question in enumerate(questions):
        same = [one for one in questions if one.modality == question.modality]
        other = same[(same.index(question) + 1) % len(same)]
        pairs = [(question.good, question.rationale, other.rationale)]
        pairs += [(question.paraphrase, question.paraphrase, other.paraphrase)]

        def reply(text: str, asked: CardQuestion = question, place: int = number) -> Candidate:
            said = replace(asked, good=text)
            return build_cell(said, place, True, True, False, None).candidate

        twins.append(Twin(question.id, None, reply(question.paraphrase), reply(question.bad)))
        for honest, source, others in pairs:
            made = {kind: in_sentences(source, form) for kind, form in TRANSFORMED.items()}
            # Where the paraphrase needs no side, a swapped one need not be wrong.
            if SIDE.search(question.paraphrase):
                made["mirrored"] = SIDE.sub(lambda found: SIDES[found[0]], source)
            if other != question:
                made["another image"] = others
            for kind, text in made.items():
                twins.append(Twin(question.id, kind, reply(honest), reply(text)))
    return twins


def in_sentences(text: str, form: str) -> str:
    """Returns the text with each sentence put into `form`."""
    sentences = [one.rstrip(".") for one in text.split(". ")]
    return " ".join(
        form.replace("{sentence}", one[0].lower() + one[1:]) for one in sentences if one
    )


def extra_candidates(questions: Sequence[CardQuestion]) -> list[Candidate]:
    """Returns the twins' candidates that are not among the cells, each once."""
    known = {cell.candidate for cell in build_cells(questions)}
    twins = build_twins(questions)
    found = dict.fromkeys(one for twin in twins for one in (twin.honest, twin.bad))
    return [one for one in found if one not in known]


def reverse_options(candidate: Candidate) -> Candidate:
    """Returns the same question with its options in the other order. Answers name an option by its
    text, so they stay."""
    return replace(candidate, options=candidate.options[::-1]) if candidate.options else candidate


def set_version(questions: Sequence[CardQuestion]) -> str:
    """Returns a hash of all candidates: two cards of different versions cannot be compared."""
    shown = [cell.candidate for cell in build_cells(questions)] + extra_candidates(questions)
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:12]
