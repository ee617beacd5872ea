"""What is measured of one reply: the grades that are stored with it, and the metrics by name.

Closed, choice and open questions have metrics of their own: they are never averaged without saying
so. LLaVA-Med's own arithmetic is beside them under its own names, faults included. Word lists and
descriptions are in metrics.yaml.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from rarl.config import RewardConfig
from rarl.replies.answers import is_right
from rarl.replies.boxes import read_boxes
from rarl.replies.observations import agreement
from rarl.replies.overlap import average_precision, boxes_value, pointing
from rarl.replies.tags import parse_reply
from rarl.replies.words import ARTICLES, same_words, token_f1, words, yes_or_no
from rarl.rewards import per_reply
from rarl.rewards.registry import Reward
from rarl.rewards.thinking import reasoning_reward
from rarl.samples import Sample
from rarl.schema import AnswerType, Box, Frame, ReplyForm

JUDGE_SCALE = 3.0  # the judge's correctness is 0 to 3
# The judge's correctness from which a reply counts as right: its answer means what the reference
# does (docs/judge.md).
JUDGED_RIGHT = 2.0


@per_reply
def correct_grade(
    text: str,
    *,
    form: ReplyForm,
    answer: str,
    answer_type: AnswerType,
    options: Sequence[str] | None,
    also_right: Sequence[str] | None = None,
    boxes: Sequence[Box] | None = None,
    frame: Frame | None = None,
) -> float | None:
    """Pays 1 for an answer that is exactly right: option, yes or no, the words of the reference or
    of another answer that counts, or the boxes."""
    given = parse_reply(text, form).answer
    right = is_right(
        given,
        answer,
        answer_type,
        options=options,
        also_right=also_right,
        boxes=boxes,
        frame=frame,
    )
    return float(right)


def well_formed_grade(
    completions: Sequence[str], form: Sequence[ReplyForm], **columns: Any
) -> list[float | None]:
    """Pays 1 for a reply that has the form that its prompt asks for."""
    return [float(parse_reply(*row).well_formed) for row in zip(completions, form, strict=True)]


# What a measurement scores replies by; the total is the grade `correct`.
GRADES: dict[str, Reward] = {
    "correct": correct_grade,
    "well_formed": well_formed_grade,
    "reasoning": reasoning_reward,
}
GRADE_SETTINGS = {name: RewardConfig(weight=float(name == "correct")) for name in GRADES}
WORDS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
METRICS: dict[str, str] = WORDS["metrics"]  # each with what it is
COLUMNS: dict[str, str] = WORDS["columns"]  # a comparison's metrics, with their titles there
RELATED: dict[str, str] = WORDS["related"]  # those of related questions, with short titles
# Metrics that the terminal shows below a data set's accuracy, where it has them.
IN_TERMINAL = (
    *("box_iou", "box_ap_30", "box_ap_50", "pointing", "report_labels"),
    *("judged_accuracy", "judge_correctness"),
)
# Those that are no fractions, with their units.
UNBOUNDED = {"completion_tokens": "tokens", "option_margin": "nats"}


def measure(sample: Sample) -> dict[str, float]:
    """Returns a reply's metrics by name, those that apply to it. Without an answer to read, the
    metrics of an open question are 0; of several right answers the nearest counts."""
    kind, reference, right = sample.example.answer_type, sample.example.answer, sample.rewards
    answer, verdict = sample.reply.answer, sample.verdict
    found = {"accuracy": right["correct"], "format": right["well_formed"]}
    found["reasoning"] = right["reasoning"]
    # what no model has written has no tokens
    found["completion_tokens"] = float(len(sample.rollout.completion_token_ids)) or None
    further = ("agreement", "option_probability", "option_margin")
    found |= {name: right.get(name) for name in further}
    if kind in ("closed", "choice"):
        found[kind] = right["correct"]
    if kind == "closed":
        side = {"yes": "positive", "no": "negative"}.get(yes_or_no(reference, reference) or "")
        found |= {f"true_{side}_rate": right["correct"]} if side else {}
        found["llava_med_closed"] = llava_med_match(answer or "", reference)
    if kind == "open":
        references = (reference, *(sample.example.also_right or ()))
        nearest = max((open_metrics(answer, one) for one in references), key=itemgetter("open_f1"))
        found |= nearest
        found["llava_med_open"] = llava_med_recall(answer or "", reference)
    found |= box_metrics(sample)
    if kind == "report":
        found["report_labels"] = agreement(answer, reference)
    if verdict is not None and verdict.correctness is not None:
        found["judged_accuracy"] = float(verdict.correctness >= JUDGED_RIGHT)
        found["judge_correctness"] = verdict.correctness / JUDGE_SCALE
        found["judge_explanation"] = verdict.explanation
    if verdict is not None and verdict.status != "unreachable":
        found["judge_unparsed"] = float(verdict.status == "unparsable")
    return {name: value for name, value in found.items() if value is not None}


def box_metrics(sample: Sample) -> dict[str, float]:
    """Returns how the boxes of an answer fit, where boxes are asked for; and of any question whose
    image has boxes, how what is named points: the boxes in the thinking, where there are any, or
    else those of the answer."""
    true, frame = sample.example.boxes, sample.prompt.frame
    if true is None or frame is None:
        return {}
    found: dict[str, float] = {}
    if sample.example.answer_type == "boxes":
        found["box_iou"] = boxes_value(sample.boxes, true)
        for name, least in (("box_ap_30", 0.3), ("box_ap_50", 0.5)):
            found[name] = average_precision(sample.boxes, true, least)
    evidence = read_boxes(sample.reply.thinking, frame) or sample.boxes
    if evidence or found:
        found["pointing"] = pointing(evidence, true)
    return found


def open_metrics(answer: str | None, reference: str) -> dict[str, float]:
    """Returns how an answer agrees with one reference, word by word."""
    given, wanted = words(answer or ""), words(reference)
    common = (Counter(given) & Counter(wanted)).total()
    return {
        "open_exact": float(answer is not None and same_words(answer, reference)),
        "open_precision": common / len(given) if common else 0.0,
        "open_recall": common / len(wanted) if common else 0.0,
        "open_f1": 0.0 if answer is None else token_f1(answer, reference),
    }


# LLaVA-Med's arithmetic, faults included, so that numbers that were published with it can be
# compared. It is that of its public repository, llava/eval/run_eval.py with
# eval_metrics/evaluate_metrics.py and eval_metrics/glossary.py at commit b9a98a7 (11 December 2023,
# the last to touch them; version 1.5 dropped the files). Its normalisation is that of the VQA
# challenge with its own list of marks. There a reply is an answer and nothing else, so here the
# tagged answer is scored, not the thinking before it, in which nearly any word could be found.
#
# Known faults, kept on purpose:
# - closed: "no" is found in "normal" and "not"; an answer with both "yes" and "no" is always right;
#   a reference that is neither counts only if the answer also contains "yes" or "no" somewhere
#   ("left" in "left abnormality").
# - open: shared words count as often as the answer has them, so that repetition raises recall, and
#   a word that the reference has twice is found by having it once.
# - normalisation: marks become spaces or nothing depending on what else is in the text
#   ("t2-weighted" is two words alone and one beside "- " or "1,000"); "none" becomes "0".

# removed at most: the original passes re.UNICODE, which is 32, where the count belongs
PERIODS = 32
NUMBERS = {word: str(number) for number, word in enumerate(WORDS["numbers"].split())}
NUMBERS["none"] = "0"
SPELLINGS = {
    word[:at] + word[at + 1 :]: word
    for word in WORDS["contractions"].split()
    for at, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the one entry that goes the other way


def llava_med_text(text: str) -> str:
    """Returns a text as LLaVA-Med compares it: lower case, marks removed if one of that kind has a
    space beside it or a comma stands between digits, else turned into spaces; no periods but
    decimal ones; number words as digits; no articles; contractions with their apostrophes."""
    text = text.lower()
    stripped, grouped = text, re.search(r"\d,\d", text) is not None
    for mark in WORDS["marks"]:
        loose = grouped or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if loose else " ")
    stripped = re.sub(r"\.(?!\d)", "", stripped, count=PERIODS)
    found = (NUMBERS.get(word, word) for word in stripped.split())
    return " ".join(SPELLINGS.get(word, word) for word in found if word not in ARTICLES)


def llava_med_match(answer: str, reference: str) -> float:
    """Returns 1 if the reference is a substring of an answer that holds "yes" or "no", else 0."""
    given, wanted = llava_med_text(answer), llava_med_text(reference)
    return float(("yes" in given or "no" in given) and wanted in given)


def llava_med_recall(answer: str, reference: str) -> float:
    """Returns tp / (tp + fn), where tp counts the shared words in the answer and fn the reference's
    missing ones in the reference. Both are normalised twice, as in the original."""
    given = Counter(llava_med_text(llava_med_text(answer)).split())
    wanted = Counter(llava_med_text(llava_med_text(reference)).split())
    found = sum(times for word, times in given.items() if word in wanted)
    missing = sum(times for word, times in wanted.items() if word not in given)
    return found / (found + missing) if found else 0.0
