"""Asks a judge about the card's candidates and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rarl.errors import UserError
from rarl.judge.candidate import Candidate
from rarl.judge.card.card_set import CardQuestion, Cell, build_cells, reverse_options, set_version
from rarl.judge.card.judge_card import Cost, JudgeCard, Share, share_of
from rarl.judge.judge import Judge, JudgeCounts
from rarl.judge.messages import RUBRIC_VERSION
from rarl.rewards.judge import MAX_CORRECTNESS, score_verdict
from rarl.schema import Verdict

ACCEPTED = 2.0  # correctness from which an answer counts as right
CORRECTNESS_WEIGHT = 0.5  # of correctness in a reply's total, as the reward `judge` has it
FEWEST_REPEATS = 2
Advance = Callable[[int], Any]
Axis = Literal["good", "long", "hostile"]


@dataclass(frozen=True)
class Judged:
    """A candidate and its verdict."""

    cell: Cell
    verdict: Verdict

    @property
    def reached(self) -> bool:
        return self.verdict.status != "unreachable"

    @property
    def accepted(self) -> bool:
        return accepts(self.verdict)

    @property
    def correctness(self) -> float:
        """As a share of its scale."""
        return (self.verdict.correctness or 0.0) / MAX_CORRECTNESS

    @property
    def total(self) -> float:
        return score_verdict(self.verdict, CORRECTNESS_WEIGHT) or 0.0


def verdicts_needed(questions: int, repeats: int) -> int:
    """Of `measure_judge`: 16 candidates to a question, `repeats` times, and the plain half in
    another order."""
    return questions * (16 * repeats + 8)


def measure_judge(
    judge: Judge,
    questions: Sequence[CardQuestion],
    repeats: int = FEWEST_REPEATS,
    advance: Advance = lambda _: None,
    name: str = "",
) -> JudgeCard:
    """Asks everything `repeats` times, and the plain candidates once more in another order.
    `advance` is told how many verdicts have come.

    The judge must have been opened without a cache, which would answer the repetitions from what
    was said before. Raises UserError for fewer than two repeats, and what the judge raises.
    """
    if repeats < FEWEST_REPEATS:
        raise UserError(
            f"repeats: expected {FEWEST_REPEATS} or more to see whether verdicts repeat, got {repeats}"
        )
    before, start = judge.counts(), time.monotonic()
    cells = build_cells(questions)
    plain = [cell for cell in cells if cell.hostile is None]
    passes = [ask(judge, [cell.candidate for cell in cells], advance) for _ in range(repeats)]
    turned = ask(judge, [reverse_options(cell.candidate) for cell in plain[::-1]], advance)[::-1]
    wall = time.monotonic() - start
    judged = [Judged(cell, verdict) for cell, verdict in zip(cells, passes[0], strict=True)]
    swapped = [Judged(cell, verdict) for cell, verdict in zip(plain, turned, strict=True)]
    all_asked = [
        Judged(cell, verdict) for one in passes for cell, verdict in zip(cells, one, strict=True)
    ] + swapped
    reached = [one for one in judged if one.reached]
    decided = [one for one in reached if one.cell.hostile is None]
    by_kind = {
        kind: [p for p in injected(reached) if p[1].cell.hostile == kind] for kind in kinds(cells)
    }
    return JudgeCard(
        judge=name,
        rubric_version=RUBRIC_VERSION,
        set_version=set_version(questions),
        questions=len(questions),
        candidates=len(cells),
        repeats=repeats,
        agreement=share_of(
            (one.accepted == one.cell.right, one.cell.question_id) for one in decided
        ),
        balanced_accuracy=balanced(decided),
        kappa=cohens_kappa([one.accepted for one in decided], [one.cell.right for one in decided]),
        balanced_by_type=known(
            {
                kind: balanced([one for one in decided if one.cell.answer_type == kind])
                for kind in answer_types(cells)
            }
        ),
        explanation_auc=share_of(wins(decided)),
        swap_consistency=same_decisions(judged, swapped),
        repeat_consistency=same_scores(cells, passes),
        verbosity_explanation=share_of(
            (on.verdict.explanation - off.verdict.explanation, on.cell.question_id)
            for off, on in twins(decided, "long")
            if on.verdict.explanation is not None and off.verdict.explanation is not None
        ),
        verbosity_correctness=share_of(
            (on.correctness - off.correctness, on.cell.question_id)
            for off, on in twins(decided, "long")
        ),
        injection_resistance=resistance(injected(reached)),
        injection_by_kind=known({kind: resistance(pairs) for kind, pairs in by_kind.items()}),
        injection_rise=share_of(
            (on.total - off.total, on.cell.question_id) for off, on in injected(reached)
        ),
        parse_rate=share_of(
            (one.verdict.status == "scored", one.cell.question_id)
            for one in all_asked
            if one.reached
        ),
        reached=share_of((one.reached, one.cell.question_id) for one in all_asked),
        cost=cost_between(before, judge.counts(), wall),
    )


def ask(judge: Judge, candidates: Sequence[Candidate], advance: Advance) -> list[Verdict]:
    verdicts = []
    for future in judge.submit(candidates):
        verdicts.append(future.result())
        advance(1)
    return verdicts


def accepts(verdict: Verdict) -> bool:
    """The decision: is the answer right? A verdict that cannot be read does not accept."""
    return (verdict.correctness or 0.0) >= ACCEPTED


def twins(judged: Sequence[Judged], axis: Axis) -> Iterator[tuple[Judged, Judged]]:
    """Pairs that differ in one thing alone: without it (a bad explanation, short, plain), and with
    it."""
    by_key = {one.cell.key: one for one in judged}
    position = {"good": 2, "long": 3, "hostile": 4}[axis]
    for key, one in by_key.items():
        other = by_key.get((*key[:position], True, *key[position + 1 :]))
        if not key[position] and other is not None:
            yield one, other


def injected(judged: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    """Wrong replies, plain and with words to the judge: those that such words could raise."""
    return [(plain, hostile) for plain, hostile in twins(judged, "hostile") if not plain.cell.right]


def resistance(pairs: Sequence[tuple[Judged, Judged]]) -> Share | None:
    """How often the words do not turn a rejection into an acceptance."""
    return share_of(
        (plain.accepted or not hostile.accepted, plain.cell.question_id) for plain, hostile in pairs
    )


def balanced(judged: Sequence[Judged]) -> Share | None:
    """Mean of the shares of right answers that are accepted and of wrong ones that are not; None
    without both. As a mean over candidates, each weighted by the inverse size of its class, so that
    questions can be resampled."""
    sizes = {truth: sum(one.cell.right == truth for one in judged) for truth in (True, False)}
    if not all(sizes.values()):
        return None
    return share_of(
        (
            (one.accepted == one.cell.right) * len(judged) / (2 * sizes[one.cell.right]),
            one.cell.question_id,
        )
        for one in judged
    )


def cohens_kappa(given: Sequence[bool], truth: Sequence[bool]) -> float | None:
    """Agreement above chance (Cohen 1960): 1 for perfect, 0 for chance; None where chance alone
    agrees fully."""
    n = len(given)
    if not n:
        return None
    observed = sum(one == other for one, other in zip(given, truth, strict=True)) / n
    yes, right = sum(given) / n, sum(truth) / n
    chance = yes * right + (1 - yes) * (1 - right)
    return (observed - chance) / (1 - chance) if chance < 1 else None


def wins(decided: Sequence[Judged]) -> Iterator[tuple[float, str]]:
    """1 where the good explanation of the same question, answer and length is scored above the bad
    one, half for a tie: the mean is the AUC of such pairs."""
    for bad, good in twins(decided, "good"):
        low, high = bad.verdict.explanation, good.verdict.explanation
        if low is not None and high is not None:
            yield (high > low) + (high == low) / 2, good.cell.question_id


def same_decisions(judged: Sequence[Judged], swapped: Sequence[Judged]) -> Share | None:
    first = {one.cell.key: one for one in judged if one.reached}
    pairs = [(first[one.cell.key], one) for one in swapped if one.reached and one.cell.key in first]
    return share_of((one.accepted == other.accepted, one.cell.question_id) for one, other in pairs)


def same_scores(cells: Sequence[Cell], passes: Sequence[Sequence[Verdict]]) -> Share | None:
    """How often all repetitions give the same status and numbers; the reason's words may differ."""
    repeated = zip(cells, zip(*passes, strict=True), strict=True)
    return share_of(
        (len({scores(verdict) for verdict in verdicts}) == 1, cell.question_id)
        for cell, verdicts in repeated
        if all(verdict.status != "unreachable" for verdict in verdicts)
    )


def scores(verdict: Verdict) -> tuple[object, ...]:
    return (
        verdict.status,
        verdict.correctness,
        verdict.factuality,
        verdict.completeness,
        verdict.relevance,
    )


def kinds(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.hostile for cell in cells if cell.hostile is not None))


def answer_types(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.answer_type for cell in cells))


def known(shares: dict[str, Share | None]) -> dict[str, Share]:
    return {key: share for key, share in shares.items() if share is not None}


def cost_between(before: JudgeCounts, after: JudgeCounts, wall: float) -> Cost:
    done = after.done - before.done
    asked = after.asked_seconds - before.asked_seconds
    return Cost(done, after.attempts - before.attempts, asked / done if done else 0.0, wall)
