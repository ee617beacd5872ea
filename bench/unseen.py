"""What the rules pay for texts that nobody wrote them for: honest rewordings against bad texts.

    python bench/unseen.py [tests/unseen_texts.yaml] [-v]

Prints, for `reasoning`, `facts` (the rationale's sentences as facts, silence taken as 0) and the
judge by rules (F1 of factuality and completeness, times relevance), the least and mean for honest
texts, and by kind the share of bad ones at 0.8 of the mean honest one or above, and the AUC; then
the share of pairs of answers that are told right. -v lists what goes wrong.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from rarl.judge.candidate import Candidate
from rarl.judge.rules import judge_by_rules
from rarl.replies.grading import is_correct
from rarl.rewards.facts import facts_reward
from rarl.rewards.thinking import reasoning_reward

TEXTS = Path(__file__).parents[1] / "tests" / "unseen_texts.yaml"
AS_GOOD = 0.8  # of the mean honest text; a bad one that earns as much pays

Case = dict[str, Any]
Scorer = Callable[[Case, str], float]


def read(path: Path = TEXTS) -> dict[str, Any]:
    """Returns the texts, frames and pairs of answers of a file."""
    read: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return read


def bad_texts(data: dict[str, Any], index: int) -> Iterator[tuple[str, str]]:
    """Yields kind and text of the bad texts of a case: its own, those of the frames, and those that
    are made of the texts of all."""
    case, cases = data["texts"][index], data["texts"]
    chance = random.Random(index)
    yield from case["bad"].items()
    honest = case["honest"][index % len(case["honest"])]
    for kind, frames in data["frames"].items():
        frame = frames[index % len(frames)]
        text = frame.format(**case | {"honest": honest})
        yield kind, text
    said = case["reference"].split()
    yield "shuffled", " ".join(chance.sample(said, len(said)))
    every = " ".join(one["reference"] for one in cases).split()
    yield "salad", " ".join(chance.sample(every, 30))
    yield "other image", cases[(index + 1) % len(cases)]["reference"]
    yield "repetition", f"{case['reference'].split('. ')[0].rstrip('.')}. " * 8
    yield "question", case["question"]


def reply(case: Case, thinking: str) -> str:
    return f"<think>{thinking}</think><answer>{case['answer']}</answer>"


def reasoning(case: Case, thinking: str) -> float:
    columns = {name: [case[name]] for name in ("question", "answer")}
    columns |= {"form": ["think"], "rationale": [case["reference"]]}
    columns |= {"organ": [None], "modality": [None]}
    return reasoning_reward([""], [reply(case, thinking)], **columns)[0] or 0.0


def facts(case: Case, thinking: str) -> float:
    said = [one.strip(" .") + "." for one in case["reference"].split(". ")]
    columns = {"question": [case["question"]], "answer": [case["answer"]], "form": ["think"]}
    paid = facts_reward([""], [reply(case, thinking)], facts=[said], other_facts=[None], **columns)
    return 2 * ((paid[0] or 0.0) - 0.5)


def judged(case: Case, thinking: str) -> float:
    verdict = judge_by_rules(
        Candidate(
            question=case["question"],
            options=None,
            reference=case["answer"],
            rationale=case["reference"],
            answer=case["answer"],
            thinking=thinking,
            reply=reply(case, thinking),
        )
    )
    true, complete = verdict.factuality or 0.0, verdict.completeness or 0.0
    both = 2 * true * complete / (true + complete) if true + complete else 0.0
    return both * (verdict.relevance or 0.0)


@dataclass(frozen=True)
class Scores:
    """honest: per case. bad: by kind, pairs of the case's index and the value."""

    honest: list[list[float]]
    bad: dict[str, list[tuple[int, float]]]

    @property
    def least(self) -> float:
        return min(value for values in self.honest for value in values)

    @property
    def average(self) -> float:
        return mean(value for values in self.honest for value in values)

    def paid(self, kind: str) -> float:
        """Returns the share of bad texts of a kind at `AS_GOOD` of the mean honest one or above."""
        return mean(value >= AS_GOOD * mean(self.honest[i]) for i, value in self.bad[kind])

    def auc(self, kind: str) -> float:
        """Returns how often an honest text earns more than a bad one, a tie counting half."""
        honest = [value for values in self.honest for value in values]
        pairs = [(good, bad) for good in honest for _, bad in self.bad[kind]]
        return mean((good > bad) + 0.5 * (good == bad) for good, bad in pairs)


def score(data: dict[str, Any], scorer: Scorer) -> Scores:
    honest = [[scorer(case, text) for text in case["honest"]] for case in data["texts"]]
    bad = defaultdict(list)
    for index, case in enumerate(data["texts"]):
        for kind, text in bad_texts(data, index):
            bad[kind].append((index, scorer(case, text)))
    return Scores(honest, dict(bad))


def framed(data: dict[str, Any], scorer: Scorer) -> dict[str, list[float]]:
    """Returns by frame of `honest_frames` what is left of a finding's worth in it, per case."""
    worth: dict[str, list[float]] = {}
    for frame in data.get("honest_frames", []):
        for case in data["texts"]:
            plain = scorer(case, f"There is {case['core']}.")
            if plain:
                worth.setdefault(frame, []).append(scorer(case, frame.format(**case)) / plain)
    return worth


def wrong_answers(data: dict[str, Any]) -> list[Case]:
    """Returns the pairs of answers whose sameness is not told right."""
    pairs = data.get("answers", [])
    return [
        one for one in pairs if is_correct(one["answer"], one["reference"], None) != one["same"]
    ]


def list_faults(data: dict[str, Any], scores: Scores, scorer: Scorer) -> None:
    for index, case in enumerate(data["texts"]):
        for text, value in zip(case["honest"], scores.honest[index], strict=True):
            if value < 0.5:
                print(f"  honest {value:.2f} [{index}] {text}")
        for kind, text in bad_texts(data, index):
            value = scorer(case, text)
            if value >= AS_GOOD * mean(scores.honest[index]):
                print(f"  {kind} {value:.2f} of {mean(scores.honest[index]):.2f} [{index}] {text}")


def main(arguments: list[str]) -> None:
    named = [one for one in arguments if one != "-v"]
    data = read(Path(named[0]) if named else TEXTS)
    for name, scorer in (("reasoning", reasoning), ("facts", facts), ("judge", judged)):
        began = time.perf_counter()
        scores = score(data, scorer)
        spent = time.perf_counter() - began
        count = 3 * len(scores.honest) + sum(map(len, scores.bad.values()))
        print(f"{name}: honest least {scores.least:.2f}, mean {scores.average:.2f}", end=", ")
        print(
            f"{sum(v >= 0.5 for h in scores.honest for v in h)} of {3 * len(scores.honest)} ≥ 0.5"
        )
        print(f"  {count / spent:,.0f} texts/s")
        for kind, values in sorted(scores.bad.items()):
            paid, auc = scores.paid(kind), scores.auc(kind)
            worst = max(value for _, value in values)
            print(f"  {kind:14} {len(values):3}  paid {paid:.2f}  AUC {auc:.3f}  most {worst:.2f}")
        for frame, worth in framed(data, scorer).items():
            print(f"  {frame:62} keeps {mean(worth):.2f}, least {min(worth):.2f}")
        if "-v" in arguments:
            list_faults(data, scores, scorer)
    wrong = wrong_answers(data)
    if data.get("answers"):
        print(f"answers: {len(data['answers']) - len(wrong)} of {len(data['answers'])} pairs right")
    for one in wrong if "-v" in arguments else []:
        print(f"  {one['reference']} / {one['answer']}: same is {one['same']}")


if __name__ == "__main__":
    main(sys.argv[1:])
