"""The judge without a model: deterministic and immediate. It is the default, and the truth on
phantoms, where every claim can be checked against the rationale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from rarl.judge.candidate import Candidate
from rarl.judge.judge import Judge, counted
from rarl.judge.rubric import ITEMS
from rarl.replies.concepts import content_words
from rarl.replies.findings import Claim, split_claims
from rarl.replies.grading import grade_answer, is_correct, is_yes_no
from rarl.replies.matching import FindingsMatch, conflict, match_claims, support
from rarl.replies.tricks import addresses_the_judge, concludes, states_answer
from rarl.replies.wording import known_words
from rarl.replies.words import normalise, words
from rarl.schema import Verdict

NEARLY_RIGHT = 0.5  # token F1 from which an answer in free text has only minor errors
# A good explanation names this share of the rationale's findings, with this precision: there may be
# one invented claim beside three right ones, but not beside two.
COMPLETE, PRECISE = 0.75, 0.85
MOST_WORDS = 50  # of an explanation, beside three times those of the rationale
FEWEST_DIFFERENT = 0.4  # share of different words in a text of 20 and more
ANSWER = re.compile(r"<answer>.*?</answer>|</?(?:think|answer)>", re.DOTALL)
SENTENCE = re.compile(r"[.;!?\n]+")


@dataclass(frozen=True)
class Explanation:
    """What is known of a reply's explanation. `match` is None without a rationale: nothing is known
    then of what the image shows."""

    text: str
    match: FindingsMatch | None
    to_judge: bool
    addresses_question: bool
    no_padding: bool

    @property
    def good(self) -> bool:
        """Whether it is checked, true, nearly complete and to the point."""
        if self.match is None or self.match.contradicted:
            return False
        checked = self.match.precision >= PRECISE and self.match.covered >= COMPLETE
        return checked and self.addresses_question and self.no_padding


class RulesJudge(Judge):
    """`judge_by_rules` as a judge: its futures are done when they are returned."""

    def submit(self, candidates: Sequence[Candidate]) -> list[Future[Verdict]]:
        futures: list[Future[Verdict]] = [Future() for _ in candidates]
        for candidate, future in zip(candidates, futures, strict=True):
            future.set_result(judge_by_rules(candidate))
            self._count(counted(future.result()))
        return futures

    def close(self) -> None:
        """There is nothing to give up."""


def judge_by_rules(candidate: Candidate) -> Verdict:
    """Correctness: 0 without an answer, 1 for a wrong one, 2 for one that is right, 3 for one with
    a good explanation.

    Factuality is the precision of the explanation's claims, 0 where one contradicts the rationale;
    completeness is the share of the rationale's that they cover. Relevance is the mean of
    "addresses the question" and "no padding". A reply that speaks to the judge has neither, and is
    never factual. Without a rationale all three are None, since what is invented would look as good
    as the truth, and correctness is at most 2.
    """
    given, reference = candidate.answer, candidate.reference
    if not any(char.isalnum() for char in given or ""):
        return Verdict("scored", 0.0, 0.0, 0.0, 0.0, "no answer can be read")
    explanation = read_explanation(candidate)
    free_text = not candidate.options and not is_yes_no(reference)
    grade, correctness = "wrong", 1.0
    if is_correct(given, reference, candidate.options):
        grade, correctness = "right", 3.0 if explanation.good else 2.0
    elif free_text and grade_answer(given, reference, "open", None) >= NEARLY_RIGHT:
        grade, correctness = "nearly right", 2.0
    match = explanation.match
    factuality = completeness = relevance = None
    if match:
        factuality, completeness = match.precision, match.covered
    if explanation.to_judge or (match and match.contradicted):
        factuality = 0.0
    if match or explanation.to_judge:
        relevance = (explanation.addresses_question + explanation.no_padding) / 2
    reason = reason_of(grade, explanation)
    return Verdict("scored", correctness, factuality, completeness, relevance, reason)


def read_explanation(candidate: Candidate) -> Explanation:
    """Reads the thinking, or where its tags are wrong, the reply without its answer."""
    text = candidate.thinking
    if text is None:
        text = ANSWER.sub(" ", candidate.reply).strip()
    references = split_claims(candidate.rationale or "")
    if references:
        match = match_claims(findings_in(text, candidate, references), references)
        about = match.covered > 0 or match.contradicted > 0
    else:
        match = None
        # Of the question, the options or the reference, without short words such as "is".
        known = (candidate.question, *(candidate.options or ()), candidate.reference)
        about = any(len(word) > 3 for word in set(words(" ".join(known))) & set(words(text)))
    # Whoever knows the names of the rubric's items fills them in.
    names_items = any(name in candidate.reply for name in ITEMS)
    to_judge = addresses_the_judge(candidate.reply) or names_items
    answer_alone = set(words(text)) <= set(words(candidate.answer or ""))
    return Explanation(
        text=text,
        match=match,
        to_judge=to_judge,
        addresses_question=about and not answer_alone and not to_judge,
        no_padding=bool(text) and not to_judge and not padded(text, candidate.rationale),
    )


def findings_in(text: str, candidate: Candidate, references: Sequence[Claim]) -> list[Claim]:
    """Returns what the explanation claims to see: its clauses without the conclusions that hold
    nothing beyond question and answer, unless the rationale tells or denies the same: "the heart is
    enlarged" is the answer "cardiomegaly", and a finding."""
    answers = [content_words(candidate.reference), content_words(candidate.answer or "")]
    known = content_words(candidate.question).union({"answer"}, *answers)
    found = []
    texts = (candidate.question, candidate.reference, candidate.rationale)
    for claim in split_claims(text, known_words(*texts, *(candidate.options or ()))):
        concluding = states_answer(claim, answers) or concludes(claim)
        only_concludes = concluding and claim.words <= known
        told = any(conflict(claim, one) or support(claim, one) for one in references)
        if told or not only_concludes:
            found.append(claim)
    return found


def padded(text: str, rationale: str | None) -> bool:
    """Whether a sentence is said twice, few words differ, or there are far more words than the
    rationale needs."""
    sentences = [sentence for part in SENTENCE.split(text) if (sentence := normalise(part))]
    if len(set(sentences)) < len(sentences):
        return True
    said = words(text)
    if len(said) >= 20 and len(set(said)) / len(said) < FEWEST_DIFFERENT:
        return True
    return rationale is not None and len(said) > MOST_WORDS + 3 * len(words(rationale))


def reason_of(right: str, explanation: Explanation) -> str:
    parts = [f"{right} answer"]
    if explanation.to_judge:
        parts.append("speaks to the judge")
    if not explanation.text:
        parts.append("no explanation")
    elif explanation.match is None:
        parts.append("no rationale to check the explanation by")
    elif explanation.match.contradicted:
        parts.append("the explanation contradicts the rationale")
    if explanation.text and not explanation.no_padding and not explanation.to_judge:
        parts.append("padded")
    return ", ".join(parts)
