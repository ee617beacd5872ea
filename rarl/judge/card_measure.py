"""Measures a judge on the replies of `card_set.py`, whose truth is known."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rarl.errors import UserError
from rarl.judge.candidate import Candidate
from rarl.judge.card import Cost, JudgeCard, JudgedShare, share_of
from rarl.judge.card_set import (
    HOSTILE,
    CardQuestion,
    Cell,
    Twin,
    build_cells,
    build_twins,
    extra_candidates,
    reverse_options,
    set_version,
)
from rarl.judge.judge import MAX_CORRECTNESS, Judge, score_verdict
from rarl.judge.rubric import CHECKLIST, Rubric
from rarl.schema import ANSWER_TYPES, Verdict

ACCEPTED = 2.0  # correctness from which an answer counts as right
CORRECTNESS_WEIGHT = 0.5  # of correctness in a reply's total, as the reward `judge` has it
FEWEST_REPEATS = 2
AXES = ("question", "right", "good", "long", "hostile")  # of a cell's key
Advance = Callable[[int], Any]


class Judged:
    """A candidate of the set, its verdict, and what follows from it. `accepted` is the decision
    that the answer is right, which a verdict that cannot be read does not make; `correctness` is a
    share of its scale."""

    def __init__(self, cell: Cell, verdict: Verdict) -> None:
        self.cell, self.verdict, self.question = cell, verdict, cell.question_id
        self.reached = verdict.status != "unreachable"
        self.accepted = (verdict.correctness or 0.0) >= ACCEPTED
        self.agrees = self.accepted == cell.right
        self.correctness = (verdict.correctness or 0.0) / MAX_CORRECTNESS
        self.explanation = verdict.explanation
        self.total = score_verdict(verdict, CORRECTNESS_WEIGHT) or 0.0


def verdicts_needed(questions: Sequence[CardQuestion], repeats: int) -> int:
    """Returns how many verdicts `measure_judge` asks for: 16 candidates to a question, `repeats`
    times, and the plain half in another order; and the twins."""
    return len(questions) * (16 * repeats + 8) + len(extra_candidates(questions))


def measure_judge(
    judge: Judge,
    questions: Sequence[CardQuestion],
    repeats: int = FEWEST_REPEATS,
    advance: Advance = lambda _: None,
    name: str = "",
    rubric: Rubric = CHECKLIST,
) -> JudgeCard:
    """Asks everything `repeats` times, the plain candidates once more in another order, and the
    twins once. `rubric` is the judge's. `advance` is told how many verdicts have come.

    The judge must have been opened without a cache, which would answer the repetitions from what
    was said before. Raises UserError for fewer than two repeats, and what the judge raises.
    """
    if repeats < FEWEST_REPEATS:
        wanted = f"{FEWEST_REPEATS} or more to see whether verdicts repeat"
        raise UserError(f"repeats: expected {wanted}, got {repeats}")
    before, start = judge.counts(), time.monotonic()
    cells = build_cells(questions)
    plain = [cell for cell in cells if cell.hostile is None]
    passes = [ask(judge, [cell.candidate for cell in cells], advance) for _ in range(repeats)]
    turned = ask(judge, [reverse_options(cell.candidate) for cell in plain[::-1]], advance)[::-1]
    extra = extra_candidates(questions)
    found = {cell.candidate: one for cell, one in zip(cells, passes[0], strict=True)}
    found |= zip(extra, ask(judge, extra, advance), strict=True)
    wall, after = time.monotonic() - start, judge.counts()
    done = after.done - before.done
    asked_seconds = after.asked_seconds - before.asked_seconds
    each = asked_seconds / done if done else 0.0
    judged = [[Judged(*pair) for pair in zip(cells, one, strict=True)] for one in passes]
    swapped = [Judged(*pair) for pair in zip(plain, turned, strict=True)]
    return JudgeCard(
        judge=name,
        rubric_version=rubric.version,
        set_version=set_version(questions),
        questions=len(questions),
        candidates=len(found),
        repeats=repeats,
        **numbers_of(judged, swapped),
        **twin_numbers(build_twins(questions), found),
        cost=Cost(done, after.attempts - before.attempts, each, wall),
    )


def numbers_of(passes: Sequence[Sequence[Judged]], swapped: Sequence[Judged]) -> dict[str, Any]:
    """Returns the card's numbers by its fields. All but those on consistency and on what was lost
    are of the first pass."""
    everything = [*itertools.chain(*passes), *swapped]
    reached = [one for one in passes[0] if one.reached]
    decided = [one for one in reached if one.cell.hostile is None]
    # Wrong replies, plain and with words to the judge: those that such words could raise.
    told = [pair for pair in twins(reached, "hostile") if not pair[0].cell.right]
    by_type, by_kind = {}, {}
    for answer_type in ANSWER_TYPES:
        if share := balanced([one for one in decided if one.cell.answer_type == answer_type]):
            by_type[answer_type] = share
    for kind in HOSTILE:
        if share := resistance([pair for pair in told if pair[1].cell.hostile == kind]):
            by_kind[kind] = share
    given, truth = [one.accepted for one in decided], [one.cell.right for one in decided]
    readable = ((one.verdict.status == "scored", one.question) for one in everything if one.reached)
    return {
        "agreement": share_of((one.agrees, one.question) for one in decided),
        "balanced_accuracy": balanced(decided),
        "kappa": cohens_kappa(given, truth),
        "balanced_by_type": by_type,
        "explanation_auc": share_of(wins(decided)),
        "swap_consistency": same_decisions(decided, swapped),
        "repeat_consistency": same_scores(passes),
        "verbosity_explanation": rise(twins(decided, "long"), "explanation"),
        "verbosity_correctness": rise(twins(decided, "long"), "correctness"),
        "injection_resistance": resistance(told),
        "injection_by_kind": by_kind,
        "injection_rise": rise(told, "total"),
        "parse_rate": share_of(readable),
        "reached": share_of((one.reached, one.question) for one in everything),
    }


def twin_numbers(twins: Sequence[Twin], found: Mapping[Candidate, Verdict]) -> dict[str, Any]:
    """Returns by the card's fields how often the honest explanation is scored above its twin, ties
    half: of paraphrases, of what was made of true texts, and of this by kind."""
    won: dict[str | None, list[tuple[float, str]]] = {}
    for twin in twins:
        high, low = found[twin.honest].explanation, found[twin.bad].explanation
        if high is not None and low is not None:
            wins_of = won.setdefault(twin.kind, [])
            wins_of.append(((high > low) + (high == low) / 2, twin.question_id))
    by_kind = {kind: share for kind, one in won.items() if kind and (share := share_of(one))}
    made = [one for kind, values in won.items() if kind for one in values]
    return {
        "paraphrase_auc": share_of(won.get(None, [])),
        "transformed_auc": share_of(made),
        "transformed_by_kind": by_kind,
    }


def ask(judge: Judge, candidates: Sequence[Candidate], advance: Advance) -> list[Verdict]:
    verdicts = []
    for future in judge.submit(candidates):
        verdicts.append(future.result())
        advance(1)
    return verdicts


Pair = tuple[Judged, Judged]


def twins(judged: Sequence[Judged], axis: str) -> list[Pair]:
    """Returns pairs that differ in one thing alone: without it (a bad explanation, short, plain),
    and with it."""
    by_key = {one.cell.key: one for one in judged}
    position = AXES.index(axis)
    pairs = []
    for key, one in by_key.items():
        other = by_key.get((*key[:position], True, *key[position + 1 :]))
        if not key[position] and other is not None:
            pairs.append((one, other))
    return pairs


def rise(pairs: Sequence[Pair], number: str) -> JudgedShare | None:
    """Returns the mean difference of a number within pairs; those where it is None are left out."""
    found = [(getattr(off, number), getattr(on, number), on.question) for off, on in pairs]
    return share_of((on - off, one) for off, on, one in found if None not in (off, on))


def resistance(pairs: Sequence[Pair]) -> JudgedShare | None:
    """Returns how often the words do not turn a rejection into an acceptance."""
    return share_of((off.accepted or not on.accepted, on.question) for off, on in pairs)


def balanced(judged: Sequence[Judged]) -> JudgedShare | None:
    """Returns the mean of the shares of right answers that are accepted and of wrong ones that are
    not; None without both. It is a mean over candidates, each weighted by the inverse size of its
    class, so that questions can be resampled."""
    sizes = {truth: sum(one.cell.right == truth for one in judged) for truth in (True, False)}
    if not all(sizes.values()):
        return None
    weights = {truth: len(judged) / (2 * size) for truth, size in sizes.items()}
    return share_of((one.agrees * weights[one.cell.right], one.question) for one in judged)


def cohens_kappa(given: Sequence[Hashable], truth: Sequence[Hashable]) -> float | None:
    """Returns the agreement above chance (Cohen 1960): 1 for perfect, 0 for chance; None where
    chance alone agrees fully."""
    n = len(given)
    if not n:
        return None
    observed = sum(one == other for one, other in zip(given, truth, strict=True)) / n
    first, second = Counter(given), Counter(truth)
    chance = sum(count * second[one] for one, count in first.items()) / n**2
    return (observed - chance) / (1 - chance) if chance < 1 else None


def wins(decided: Sequence[Judged]) -> Iterator[tuple[float, str]]:
    """Yields 1 where the good explanation of the same question, answer and length is scored above
    the bad one, half for a tie: the mean is the AUC of such pairs."""
    for bad, good in twins(decided, "good"):
        low, high = bad.explanation, good.explanation
        if low is not None and high is not None:
            yield (high > low) + (high == low) / 2, good.question


def same_decisions(judged: Sequence[Judged], swapped: Sequence[Judged]) -> JudgedShare | None:
    first = {one.cell.key: one.accepted for one in judged}
    return share_of(
        (one.accepted == first[one.cell.key], one.question)
        for one in swapped
        if one.reached and one.cell.key in first
    )


def same_scores(passes: Sequence[Sequence[Judged]]) -> JudgedShare | None:
    """Returns how often all repetitions give the same status and numbers; the reason's words may
    differ."""
    return share_of(
        (len({replace(one.verdict, reason="") for one in asked}) == 1, asked[0].question)
        for asked in zip(*passes, strict=True)
        if all(one.reached for one in asked)
    )
