"""What is measured of one reply, by name. Each value is in [0, 1] (tokens: a count), None where it
does not apply.

Closed, choice and open questions have metrics of their own: they are never averaged into one number
here. LLaVA-Med's own arithmetic is beside them under its own names, for comparison with what was
published with it, faults included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rarl.evaluation.prediction import Prediction
from rarl.replies.words import same_words, token_f1, words

JUDGE_SCALE = 3.0  # the judge's correctness is 0 to 3


@dataclass(frozen=True)
class Metric:
    """`of` gives a prediction's value. `unit` is "share" (in [0, 1], shown in per cent) or
    "tokens"."""

    name: str
    title: str
    of: Callable[[Prediction], float | None]
    unit: Literal["share", "tokens"] = "share"

    @property
    def about(self) -> str:
        """What it is, in a line."""
        return " ".join((self.of.__doc__ or "").split())


def closed(prediction: Prediction) -> float | None:
    """Closed questions: exactly right; yes or no as a word, once."""
    return float(prediction.correct) if prediction.answer_type == "closed" else None


def choice(prediction: Prediction) -> float | None:
    """Choice questions: the right option, by its text, its letter or both."""
    return float(prediction.correct) if prediction.answer_type == "choice" else None


def open_exact(prediction: Prediction) -> float | None:
    """Open questions: the reference's words and no others, in order, whatever the case, articles
    and punctuation."""
    return open_value(prediction, lambda answer, reference: float(same_words(answer, reference)))


def open_precision(prediction: Prediction) -> float | None:
    """Open questions: the share of the answer's words that the reference has, each as often as
    there."""
    return open_value(prediction, lambda answer, reference: overlap(answer, reference)[0])


def open_recall(prediction: Prediction) -> float | None:
    """Open questions: the share of the reference's words that the answer has, each as often as
    there."""
    return open_value(prediction, lambda answer, reference: overlap(answer, reference)[1])


def open_f1(prediction: Prediction) -> float | None:
    """Open questions: harmonic mean of precision and recall, question by question (SQuAD)."""
    return open_value(prediction, token_f1)


def well_formed(prediction: Prediction) -> float | None:
    """The reply has the form that its prompt asks for."""
    return float(prediction.well_formed)


def judge_correctness(prediction: Prediction) -> float | None:
    """The judge's correctness over its scale of 3; 0 where its verdict could not be read."""
    return (
        None if prediction.judge_correctness is None else prediction.judge_correctness / JUDGE_SCALE
    )


def judge_explanation(prediction: Prediction) -> float | None:
    """The judge's mean of factuality, completeness and relevance; 0 where its verdict could not be
    read."""
    return prediction.judge_explanation


def judge_unparsed(prediction: Prediction) -> float | None:
    """Verdicts that could not be read, among those that arrived."""
    if prediction.judge_status not in ("scored", "unparsable"):
        return None
    return float(prediction.judge_status == "unparsable")


def reasoning(prediction: Prediction) -> float | None:
    """The reward of that name, where the prompt asks for thinking and something is known to compare
    it with."""
    return prediction.reasoning


def completion_tokens(prediction: Prediction) -> float | None:
    """Length of the whole reply, its end token included."""
    return float(prediction.completion_tokens)


def llava_med_closed(prediction: Prediction) -> float | None:
    """Closed questions as LLaVA-Med counts them: the reference is a substring of the answer ("no"
    is in "normal")."""
    if prediction.answer_type != "closed":
        return None
    reply, reference = llava_med_text(prediction.answer or ""), llava_med_text(prediction.reference)
    return float(("yes" in reply or "no" in reply) and reference in reply)


def llava_med_open(prediction: Prediction) -> float | None:
    """Open questions as LLaVA-Med counts them: recall of words, in which a repeated right word
    counts again."""
    return open_value(prediction, llava_med_recall)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("closed", "accuracy, closed questions", closed),
        Metric("choice", "accuracy, choice questions", choice),
        Metric("open_exact", "exact match, open questions", open_exact),
        Metric("open_precision", "word precision, open questions", open_precision),
        Metric("open_recall", "word recall, open questions", open_recall),
        Metric("open_f1", "word F1, open questions", open_f1),
        Metric("format", "well formed", well_formed),
        Metric("judge_correctness", "judge: correctness", judge_correctness),
        Metric("judge_explanation", "judge: explanation", judge_explanation),
        Metric("judge_unparsed", "judge: verdict unreadable", judge_unparsed),
        Metric("reasoning", "reasoning", reasoning),
        Metric("completion_tokens", "tokens", completion_tokens, "tokens"),
        Metric("llava_med_closed", "closed, as LLaVA-Med counts", llava_med_closed),
        Metric("llava_med_open", "open, as LLaVA-Med counts", llava_med_open),
    )
}


def open_value(prediction: Prediction, score: Callable[[str, str], float]) -> float | None:
    """`score(answer, reference)` of an open question, 0 where there is no answer to read."""
    if prediction.answer_type != "open":
        return None
    return 0.0 if prediction.answer is None else score(prediction.answer, prediction.reference)


def overlap(answer: str, reference: str) -> tuple[float, float]:
    """Precision (over the answer's words) and recall (over the reference's), of multisets; 0 where
    nothing is shared. Their harmonic mean is `token_f1`."""
    given, wanted = words(answer), words(reference)
    common = (Counter(given) & Counter(wanted)).total()
    return (common / len(given), common / len(wanted)) if common else (0.0, 0.0)


# LLaVA-Med's arithmetic as in its public repository, llava/eval/run_eval.py with
# eval_metrics/evaluate_metrics.py and eval_metrics/glossary.py at commit b9a98a7 (11 December 2023,
# the last to touch them; version 1.5 dropped the files). Its normalisation is that of the VQA
# challenge with its own list of marks. There a reply is an answer and nothing else, so that here
# the tagged answer is scored, not the thinking before it, in which nearly any word could be found.
# Known faults, kept so that numbers can be compared: - closed: "no" is found in "normal" and "not";
# an answer with both "yes" and "no" is always right; a reference that
#   is neither counts only if the answer also contains "yes" or "no" somewhere ("left" in "left abnormality").
# - open: shared words count as often as the answer has them, so that repetition raises recall, and
# a word that the
#   reference has twice is found by having it once.
# - normalisation: marks become spaces or nothing depending on what else is in the text
# ("t2-weighted" is two words
#   alone and one beside "- " or "1,000"); "none" becomes "0".
MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
# removed at most: the original passes re.UNICODE, which is 32, where the count belongs
PERIODS = 32
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())}
NUMBERS["none"] = "0"
# Contractions: each is also recognised with any one of its apostrophes left out.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
SPELLINGS = {
    word[:at] + word[at + 1 :]: word
    for word in CONTRACTIONS.split()
    for at, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the one entry that goes the other way


def llava_med_text(text: str) -> str:
    """A text as LLaVA-Med compares it: lower case, `MARKS` removed where one of that kind has a
    space beside it or a comma stands between digits, else turned into spaces; no periods but
    decimal ones; number words as digits; no articles; contractions with their apostrophes."""
    text = text.lower()
    stripped, grouped = text, re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        loose = grouped or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if loose else " ")
    stripped = re.sub(r"\.(?!\d)", "", stripped, count=PERIODS)
    found = (NUMBERS.get(word, word) for word in stripped.split())
    return " ".join(SPELLINGS.get(word, word) for word in found if word not in ("a", "an", "the"))


def llava_med_recall(answer: str, reference: str) -> float:
    """tp / (tp + fn), where tp counts the shared words in the answer and fn the reference's missing
    ones in the reference. Normalised twice, as in the original."""
    given = Counter(llava_med_text(llava_med_text(answer)).split())
    wanted = Counter(llava_med_text(llava_med_text(reference)).split())
    found = sum(times for word, times in given.items() if word in wanted)
    missing = sum(times for word, times in wanted.items() if word not in given)
    return found / (found + missing) if found else 0.0
