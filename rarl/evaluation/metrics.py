"""What is measured of one reply: the grades that are stored with it, and the metrics by name.

Closed, choice and open questions have metrics of their own: they are never averaged without saying
so. LLaVA-Med's own arithmetic is beside them under its own names, faults included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rarl.config import RewardConfig
from rarl.evaluation.llava_med import llava_med_match, llava_med_recall
from rarl.replies.grading import is_correct
from rarl.replies.tags import parse_reply
from rarl.replies.words import same_words, token_f1, words
from rarl.rewards.registry import Reward
from rarl.rewards.thinking import reasoning_reward
from rarl.samples import Sample
from rarl.schema import ReplyForm

JUDGE_SCALE = 3.0  # the judge's correctness is 0 to 3


def correct_grade(
    completions: Sequence[str],
    form: Sequence[ReplyForm],
    answer: Sequence[str],
    options: Sequence[Sequence[str] | None],
    **columns: Any,
) -> list[float | None]:
    """Pays 1 for an answer that is exactly right: option, yes or no, or the reference's words."""
    rows = zip(completions, form, answer, options, strict=True)
    return [
        float(is_correct(parse_reply(text, how).answer, wanted, choices))
        for text, how, wanted, choices in rows
    ]


def well_formed_grade(
    completions: Sequence[str], form: Sequence[ReplyForm], **columns: Any
) -> list[float | None]:
    """Pays 1 for a reply that has the form that its prompt asks for."""
    rows = zip(completions, form, strict=True)
    return [float(parse_reply(text, how).well_formed) for text, how in rows]


# What a measurement scores replies by; the total is the grade `correct`.
GRADES: dict[str, Reward] = {
    "correct": correct_grade,
    "well_formed": well_formed_grade,
    "reasoning": reasoning_reward,
}
GRADE_SETTINGS = {name: RewardConfig(weight=float(name == "correct")) for name in GRADES}


# Each metric with what it is. A value is in [0, 1], but for `completion_tokens`.
METRICS = {
    "accuracy": "Exactly right, over all types of questions.",
    "closed": "Closed questions: exactly right; yes or no as a word, once.",
    "choice": "Choice questions: the right option, by its text, its letter or both.",
    "open_exact": "Open questions: the reference's words and no others, in order, whatever the "
    "case, articles and punctuation.",
    "open_precision": "Open questions: the share of the answer's words that the reference has, "
    "each as often as there.",
    "open_recall": "Open questions: the share of the reference's words that the answer has, each "
    "as often as there.",
    "open_f1": "Open questions: harmonic mean of precision and recall, question by question "
    "(SQuAD).",
    "format": "The reply has the form that its prompt asks for.",
    "judge_correctness": "The judge's correctness over its scale of 3; 0 if its verdict could not "
    "be read.",
    "judge_explanation": "The judge's mean of factuality, completeness and relevance; 0 if its "
    "verdict could not be read.",
    "judge_unparsed": "Verdicts that could not be read, among those that arrived.",
    "reasoning": "The reward of that name, if the prompt asks for thinking and something is known "
    "to compare it with.",
    "completion_tokens": "Length of the whole reply in tokens, its end token included.",
    "llava_med_closed": "Closed questions as LLaVA-Med counts them: the reference is a substring "
    'of the answer ("no" is in "normal").',
    "llava_med_open": "Open questions as LLaVA-Med counts them: recall of words, in which a "
    "repeated right word counts again.",
}


def measure(sample: Sample) -> dict[str, float]:
    """Returns a reply's metrics by name, those that apply to it. Without an answer to read, the
    metrics of an open question are 0."""
    kind, reference, right = sample.example.answer_type, sample.example.answer, sample.rewards
    answer, verdict = sample.reply.answer, sample.verdict
    found = {"accuracy": right["correct"], "format": right["well_formed"]}
    found["reasoning"] = right["reasoning"]
    found["completion_tokens"] = float(len(sample.rollout.completion_token_ids))
    if kind in ("closed", "choice"):
        found[kind] = right["correct"]
    if kind == "closed":
        found["llava_med_closed"] = llava_med_match(answer or "", reference)
    if kind == "open":
        given, wanted = words(answer or ""), words(reference)
        common = (Counter(given) & Counter(wanted)).total()
        found["open_exact"] = float(answer is not None and same_words(answer, reference))
        found["open_precision"] = common / len(given) if common else 0.0
        found["open_recall"] = common / len(wanted) if common else 0.0
        found["open_f1"] = 0.0 if answer is None else token_f1(answer, reference)
        found["llava_med_open"] = llava_med_recall(answer or "", reference)
    if verdict is not None and verdict.correctness is not None:
        found["judge_correctness"] = verdict.correctness / JUDGE_SCALE
        found["judge_explanation"] = verdict.explanation
    if verdict is not None and verdict.status != "unreachable":
        found["judge_unparsed"] = float(verdict.status == "unparsable")
    return {name: value for name, value in found.items() if value is not None}
