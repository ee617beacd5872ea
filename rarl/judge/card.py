"""The card of a judge: what is known of its verdicts where the truth is known, and the bars that it
has to clear. `rarl.judge.card_measure` fills it in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from jinja2 import Template
from pydantic import TypeAdapter

from rarl.intervals import interval95

HERE = Path(__file__).parent
TEMPLATE = Template((HERE / "card.md.jinja").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class JudgedShare:
    """A mean over `n` values with its 95 % interval, which resamples whole questions."""

    value: float
    low: float
    high: float
    n: int


def share_of(values: Iterable[tuple[float, str]]) -> JudgedShare | None:
    """Returns the mean of values, each with the question that it belongs to; None without any."""
    pairs = [(float(value), question) for value, question in values]
    if not pairs:
        return None
    numbers, questions = zip(*pairs, strict=True)
    low, high = interval95(numbers, questions)
    return JudgedShare(sum(numbers) / len(numbers), low, high, len(numbers))


@dataclass(frozen=True)
class Cost:
    """What all verdicts together cost. `seconds_each` is the requests' durations over the
    candidates, 0 where there are no requests; `wall_seconds` is shorter, since many are in
    flight."""

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
    agreement: JudgedShare | None
    swapped: JudgedShare | None
    same_choice: JudgedShare | None
    tied: JudgedShare | None
    with_reference: JudgedShare | None
    without_reference: JudgedShare | None
    by_source: dict[str, JudgedShare]


@dataclass(frozen=True)
class Bar:
    """What a number of the card must be, at least or at most; `said` names it to people."""

    name: str
    said: str
    bound: float
    at_least: bool = True


WRITTEN = yaml.safe_load((HERE / "card_bars.yaml").read_text(encoding="utf-8"))
BARS = TypeAdapter(tuple[Bar, ...]).validate_python(WRITTEN)


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
    agreement: JudgedShare | None
    balanced_accuracy: JudgedShare | None
    kappa: float | None
    balanced_by_type: dict[str, JudgedShare]
    explanation_auc: JudgedShare | None
    paraphrase_auc: JudgedShare | None
    transformed_auc: JudgedShare | None
    transformed_by_kind: dict[str, JudgedShare]
    swap_consistency: JudgedShare | None
    repeat_consistency: JudgedShare | None
    verbosity_explanation: JudgedShare | None
    verbosity_correctness: JudgedShare | None
    injection_resistance: JudgedShare | None
    injection_by_kind: dict[str, JudgedShare]
    injection_rise: JudgedShare | None
    parse_rate: JudgedShare | None
    reached: JudgedShare | None
    cost: Cost
    preferences: Preferences | None = None

    @property
    def fit(self) -> bool:
        """Whether a policy may be trained by this judge."""
        return not self.missed()

    def missed(self) -> list[Bar]:
        """Returns the bars that are not cleared; a number that could not be measured clears
        none."""
        missed = []
        for bar in BARS:
            share = getattr(self, bar.name)
            sign = 1 if bar.at_least else -1
            if share is None or sign * share.value < sign * bar.bound:
                missed.append(bar)
        return missed

    def failures(self) -> list[str]:
        """Returns each bar that is missed, as a line for people."""
        lines = []
        for bar in self.missed():
            share = getattr(self, bar.name)
            found = "could not be measured" if share is None else f"is {share.value:.3f}"
            wanted = f"at {'least' if bar.at_least else 'most'} {bar.bound:g}"
            lines.append(f"{bar.said} {found}; the bar is {wanted}")
        return lines

    def to_json(self) -> str:
        tree = asdict(self) | {"fit": self.fit, "failures": self.failures()}
        return json.dumps(tree, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> JudgeCard:
        """Reads what `to_json` wrote; whether it is fit is found anew. Raises ValueError for
        anything else."""
        return TypeAdapter(JudgeCard).validate_json(text)


def render_markdown(card: JudgeCard) -> str:
    """Returns the card as Markdown: whether it is fit, then the numbers."""
    return TEMPLATE.render(card=card, bars=BARS)


def main_table(card: JudgeCard) -> str:
    """Returns the card's main table alone."""
    return str(TEMPLATE.make_module({"bars": BARS, "card": card}).main_table(card))
