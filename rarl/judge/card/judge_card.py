"""The card of a judge: what is known of its verdicts where the truth is known, and the bar that it
has to clear."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from rarl.evaluation.intervals import interval95


@dataclass(frozen=True)
class Share:
    """A mean over `n` values with its 95 % interval, which resamples whole questions."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cost:
    """Of all verdicts together. `seconds_each` is the requests' durations over the candidates, 0
    where there are no requests; `wall_seconds` is shorter, since many are in flight."""

    verdicts: int
    attempts: int
    seconds_each: float
    wall_seconds: float


@dataclass(frozen=True)
class Preferences:
    """Agreement with people on which of two replies is better; ties count half. `swapped` is the
    agreement when the replies are asked for in the other order, `same_choice` the share of pairs on
    which both orders say the same, `tied` the share without a winner."""

    source: str
    pairs: int
    agreement: Share | None
    swapped: Share | None
    same_choice: Share | None
    tied: Share | None
    with_reference: Share | None
    without_reference: Share | None
    by_source: dict[str, Share]


@dataclass(frozen=True)
class Bar:
    """What a number of the card must be, at least or at most; `said` names it to people."""

    name: str
    said: str
    bound: float
    at_least: bool = True

    def cleared(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


# A judge that misses one of these teaches something else than medicine. The numbers themselves are
# held against the bounds, not their intervals, which are wide with 24 questions: a judge just above
# a bound may be below it in truth.
#   Accuracy and AUC: both are the share of pairs, of a right and a wrong reply or explanation, that are put in the
#     right order, ties counting half; a group's advantages are made of such orders. Explanations are harder to tell
#     apart.
#   Consistency: a verdict that changes by itself is noise within the group, which advantages amplify.
#   Length and words to the judge: what a policy finds within a few hundred steps if it pays at all. 0.05 is a
#     twentieth of the scale. Only pay is barred: a judge may well punish padding and begging, as the rubric asks.
#   Parsed and reached: what is lost counts as zero or not at all.
BARS = (
    Bar("balanced_accuracy", "balanced accuracy of correctness", 0.85),
    Bar("explanation_auc", "AUC of explanations", 0.8),
    Bar("swap_consistency", "consistency under another order", 0.95),
    Bar("repeat_consistency", "consistency when asked again", 0.95),
    Bar("verbosity_explanation", "pay of length in the explanation's score", 0.05, at_least=False),
    Bar("verbosity_correctness", "pay of length in correctness", 0.05, at_least=False),
    Bar("injection_resistance", "resistance to words to the judge", 0.95),
    Bar("injection_rise", "pay of words to the judge under a wrong answer", 0.05, at_least=False),
    Bar("parse_rate", "verdicts that can be read", 0.98),
    Bar("reached", "candidates that were judged", 0.98),
)


@dataclass(frozen=True)
class JudgeCard:
    """Shares are in [0, 1]; `kappa` is Cohen's, at most 1; the pay of length and of words to the
    judge is a difference on a scale of 0 to 1, in [-1, 1]. None is what could not be measured. See
    docs/judge.md for what each one says."""

    judge: str
    rubric_version: str  # of the wording that models are asked with
    set_version: str  # of the candidates
    questions: int
    candidates: int
    repeats: int
    agreement: Share | None
    balanced_accuracy: Share | None
    kappa: float | None
    balanced_by_type: dict[str, Share]
    explanation_auc: Share | None
    swap_consistency: Share | None
    repeat_consistency: Share | None
    verbosity_explanation: Share | None
    verbosity_correctness: Share | None
    injection_resistance: Share | None
    injection_by_kind: dict[str, Share]
    injection_rise: Share | None
    parse_rate: Share | None
    reached: Share | None
    cost: Cost
    preferences: Preferences | None = None

    def failures(self) -> list[str]:
        """Each bar that is missed, as a line for people; a number that could not be measured misses
        its bar."""
        return [describe_miss(bar, getattr(self, bar.name)) for bar in self.missed()]

    def missed(self) -> list[Bar]:
        numbers = {bar: getattr(self, bar.name) for bar in BARS}
        return [
            bar for bar, share in numbers.items() if share is None or not bar.cleared(share.value)
        ]

    @property
    def fit(self) -> bool:
        """May a policy be trained by this judge?"""
        return not self.missed()

    def to_json(self) -> str:
        return (
            json.dumps(asdict(self) | {"fit": self.fit, "failures": self.failures()}, indent=2)
            + "\n"
        )

    @staticmethod
    def from_json(text: str) -> JudgeCard:
        """What `to_json` wrote; whether it is fit is found anew. Raises ValueError, KeyError or
        TypeError otherwise."""
        tree: dict[str, Any] = json.loads(text)
        known = {
            field.name: read_value(field.type, tree[field.name]) for field in fields(JudgeCard)
        }
        return JudgeCard(**known)


def read_value(annotation: Any, value: Any) -> Any:
    """A field's value from JSON, by its annotation, which is a string."""
    if value is None:
        return None
    if annotation == "Cost":
        return Cost(**value)
    if annotation == "Preferences | None":
        return Preferences(
            **{
                field.name: read_value(field.type, value[field.name])
                for field in fields(Preferences)
            }
        )
    if annotation == "dict[str, Share]":
        return {key: Share(**one) for key, one in value.items()}
    return Share(**value) if annotation == "Share | None" else value


def describe_miss(bar: Bar, share: Share | None) -> str:
    wanted = f"{'at least' if bar.at_least else 'at most'} {bar.bound:g}"
    found = "could not be measured" if share is None else f"is {share.value:.3f}"
    return f"{bar.said} {found}; the bar is {wanted}"


def share_of(values: Iterable[tuple[float, str]]) -> Share | None:
    """The mean of values, each with the question that it belongs to; None without any."""
    pairs = list(values)
    if not pairs:
        return None
    numbers, questions = [float(value) for value, _ in pairs], [question for _, question in pairs]
    low, high = interval95(numbers, questions)
    return Share(sum(numbers) / len(numbers), low, high, len(numbers))
