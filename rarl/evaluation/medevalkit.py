"""What MedEvalKit would count, so that numbers that were published with it can be placed beside:
its reading of a reply, its rules for closed, open and choice questions, and its sums.

The arithmetic is that of its public repository at commit 9b12e3b (24 February 2026), with the
packages rouge 1.0.1 and NLTK 3.10.4 that it calls, and is written anew here; faults are kept on
purpose, and docs/evaluation.md names them. It has rules of its own for SLAKE, for questions with
options, and for VQA-RAD and PathVQA; any other data set is counted as the latter two.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rarl.evaluation.metrics import JUDGED_RIGHT
from rarl.samples import Sample
from rarl.schema import Example

Kind = Literal["open", "close", "choice"]
# What precedes an answer in a reply; the last that occurs is cut off first to last, in this order.
LEADS = (
    *("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:"),
    *("final answer", "final answer is"),
)
OPEN_SCORES = (
    *("em", "bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rougel"),
    *("precision", "recall", "f1"),
)
UNBOXED = "None"  # what its reader of \boxed{} gives where there is none
NEARLY_ZERO = 1e-8  # in the denominator of rouge's F


@dataclass(frozen=True)
class Graded:
    """One reply: the kind of question that it counts as, whether it is right, and the scores of an
    open one by their names in OPEN_SCORES. `ends` tells that the original stops there with an
    exception; all scores are then 0."""

    kind: Kind
    right: bool
    scores: Mapping[str, float]
    ends: bool = False


def grade(example: Example, text: str) -> Graded:
    """Returns what a reply to a question counts as."""
    if example.options:
        return Graded("choice", chooses(example, text), {})
    answer, reply = example.answer, taken_out(text)
    if of_slake(example):
        if example.answer_type != "open":
            # Only a reference in small letters is read as yes or no; SLAKE writes "Yes" and "No".
            says = agrees if answer in ("yes", "no") else equals
            return Graded("close", says(answer.lower(), reply), {})
        return grade_open(answer.lower(), reply)
    answer, reply = answer.lower().strip(), reply.lower().strip()
    if answer in ("yes", "no"):
        return Graded("close", agrees(answer, reply), {})
    return grade_open(answer, reply)


def of_slake(example: Example) -> bool:
    return example.dataset == "slake"


# Reading a reply


def taken_out(text: str) -> str:
    """Returns what stands in the last \\boxed{}, or else between answer tags; the whole text where
    neither is there."""
    content = boxed(text)
    if content != UNBOXED:
        return content
    return tagged(text) if "<answer>" in text else text


def boxed(text: str) -> str:
    """Returns what stands in the last \\boxed{}, without blanks around it; "None" without one, or
    where it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return UNBOXED
    begin, depth = start + len("\\boxed{"), 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[begin:place].strip()
    return UNBOXED


def tagged(text: str) -> str:
    """Returns everything between answer tags, all of them, with blanks between; the whole text
    where that is nothing."""
    parts, rest = [], text
    while "<answer>" in rest:
        inner, closing, rest = rest.partition("<answer>")[2].partition("</answer>")
        if closing:
            parts.append(inner)
    return " ".join(parts).strip() or text


def read(text: str) -> str:
    """Returns a reply as the rules compare it: small letters, and what follows the last of each of
    LEADS. A blank before it stays, and a text with the word "boxed" is what stands in \\boxed{}."""
    text = text.lower()
    if "boxed" in text:
        text = boxed(text)
    elif "<answer>" in text:
        text = tagged(text)
    for lead in LEADS:
        text = text.split(lead)[-1]
    return text


# Closed questions and choices


def agrees(answer: str, reply: str) -> bool:
    """Returns whether exactly one of "yes" and "no" is somewhere in the reply, "normal" included,
    and is the answer."""
    said = read(reply).replace("\n", "").replace(".", "")
    return ("yes" in said) != ("no" in said) and answer in said


def equals(answer: str, reply: str) -> bool:
    """Returns whether the reply is the answer letter by letter, but for periods and line ends."""
    return read(reply).replace("\n", "").replace(".", "") == answer


def chooses(example: Example, text: str) -> bool:
    """Returns whether the letter of the right option is the reply, or the option that is spelt most
    like the reply by difflib's ratio is the right one: the first, where none is like it."""
    options = list(example.options or ())
    letters = [chr(ord("a") + place) for place in range(len(options))]
    mark = ":" if example.dataset == "pmc-vqa" else ". "
    spelt = [f"{a}{mark}{one.lower()}" for a, one in zip(letters, options, strict=True)]
    answer = letters[options.index(example.answer)]
    said = text if example.dataset == "pmc-vqa" else tagged(text)
    parts = said.lower().split("\n\n")
    said = said.lower()
    if parts[0] in letters:
        said = parts[0]
    elif (last := parts[-1].split(".")[0]) in letters:
        said = last
    said = read(said).strip().lower().replace("\n", "")
    head = said.split(".")[0].split(":")[-1]
    if head == answer:
        return True
    if head in letters:
        return False
    if head in spelt:
        return head == spelt[letters.index(answer)]
    likeness = [difflib.SequenceMatcher(None, one, said).ratio() for one in spelt]
    return letters[likeness.index(max(likeness))] == answer


# Open questions


def grade_open(answer: str, reply: str) -> Graded:
    """Returns the scores of an open question."""
    said = read(reply)
    rouge = rouge_scores(said, answer)
    overlap = word_overlap(said, answer)
    if rouge is None or overlap is None:
        return Graded("open", False, dict.fromkeys(OPEN_SCORES, 0.0), ends=True)
    bleu = [bleu_score(said, answer, order) for order in range(1, 5)]
    values = (float(said == answer), *bleu, *rouge, *overlap)
    return Graded("open", said == answer, dict(zip(OPEN_SCORES, values, strict=True)))


def bleu_score(reply: str, answer: str, order: int) -> float:
    """Returns NLTK's BLEU without smoothing (Papineni et al. 2002) up to this order, over words
    between blanks. An order without a shared n-gram counts as the smallest number there is, so that
    a single right word has a BLEU-2 of practically 0."""
    said, wanted = bleu_words(reply), bleu_words(answer)
    logs = []
    for n in range(1, order + 1):
        given, known = n_grams(said, n), n_grams(wanted, n)
        shared = (given & known).total()
        if n == 1 and not shared:
            return 0.0
        share = shared / max(1, given.total()) if shared else sys.float_info.min
        logs.append(math.log(share) / order)
    brevity = 1.0 if len(said) > len(wanted) else math.exp(1 - len(wanted) / len(said))
    return brevity * math.exp(math.fsum(logs))


def bleu_words(text: str) -> list[str]:
    return text.lower().replace(".", " .").split(" ")


def n_grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def rouge_scores(reply: str, answer: str) -> tuple[float, float, float] | None:
    """Returns the F of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), all over sets rather than counts,
    as the package rouge has them; None where it raises an exception, for a text without words."""
    said, wanted = rouge_sentences(reply), rouge_sentences(answer)
    if not said or not wanted:
        return None
    words, known = (" ".join(one).split(" ") for one in (said, wanted))
    shared = []
    for n in (1, 2):
        given, right = set(n_grams(words, n)), set(n_grams(known, n))
        shared.append(f_score(len(given & right), len(given), len(right)))
    common: set[str] = set()
    for sentence in wanted:
        for other in said:
            common |= set(longest_common(sentence.split(" "), other.split(" ")))
    shared.append(f_score(len(common), len(set(words)), len(set(known))))
    return shared[0], shared[1], shared[2]


def rouge_sentences(text: str) -> list[str]:
    """Returns what stands between periods, with single blanks; blank parts count as a word."""
    return [" ".join(part.split()) for part in text.lower().split(".") if part]


def f_score(shared: int, given: int, right: int) -> float:
    precision, recall = (shared / size if size else 0.0 for size in (given, right))
    return 2.0 * (precision * recall / (precision + recall + NEARLY_ZERO))


def longest_common(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Returns the longest common subsequence; of several, the one that a walk back from both ends
    finds that leaves out of `second` where either would do."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            best = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if one == other else best
    found, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def word_overlap(reply: str, answer: str) -> tuple[float, float, float] | None:
    """Returns what its columns "precision", "recall" and "f1" hold: the F1, the precision and the
    recall of the sets of words, in that wrong order; None where it raises an exception."""
    said, wanted = set(reply.lower().split()), set(answer.lower().split())
    if not said or not wanted:
        return None
    shared = len(said & wanted)
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall), precision, recall


# Sums


def medevalkit_scores(samples: Sequence[Sample]) -> dict[str, Any]:
    """Returns what it would print of one data set, by its names: `total`, `open`, `close` and
    `choice`, each with `total`, `right` and `acc`, which of `open` is divided by its number twice,
    and the means of OPEN_SCORES under `open`; `ends`, at how many replies the original would have
    stopped; and `judged`, the counts with the judge in the place of its own, where all replies
    that it would ask about have a verdict."""
    graded = [(one, grade(one.example, one.rollout.text)) for one in samples]
    found: dict[str, Any] = {"ends": sum(its.ends for _, its in graded)}
    for kind in ("total", "open", "close", "choice"):
        own = [its for _, its in graded if kind in ("total", its.kind)]
        if own:
            found[kind] = counted(sum(its.right for its in own), len(own))
        if own and kind == "open":
            found[kind]["acc"] /= len(own)  # a second time, as there
            for name in OPEN_SCORES:
                found[kind][name] = math.fsum(its.scores[name] for its in own) / len(own)
    judged = judged_counts(graded)
    return found | ({"judged": judged} if judged else {})


def counted(right: int, n: int) -> dict[str, Any]:
    return {"total": n, "right": right, "acc": right / n}


def judged_counts(graded: Sequence[tuple[Sample, Graded]]) -> dict[str, Any]:
    """Returns its counts with a judge: of VQA-RAD, closed questions by rule and open ones by the
    judge; of PathVQA the open ones alone, over all; of SLAKE the closed ones by both, added up.
    Nothing where a verdict is missing, or where it asks no judge."""
    if not graded or any(its.kind == "choice" for _, its in graded):
        return {}
    asked = [(one, its) for one, its in graded if its.kind == "open" or of_slake(one.example)]
    if not asked or any(one.verdict is None or one.verdict.correctness is None for one, _ in asked):
        return {}
    right = Counter(its.kind for one, its in asked if judged_right(one))
    if graded[0][0].example.dataset != "path-vqa":
        right["close"] += sum(its.right for _, its in graded if its.kind == "close")
    sizes = Counter(its.kind for _, its in graded)
    counts = {"total": counted(right.total(), len(graded))}
    counts |= {kind: counted(right[kind], n) for kind, n in sizes.items()}
    if "open" in counts:
        counts["open"]["acc"] /= sizes["open"]
    return counts


def judged_right(sample: Sample) -> bool:
    verdict = sample.verdict
    return verdict is not None and (verdict.correctness or 0.0) >= JUDGED_RIGHT
