"""The plan of a comparison, for people: whether each of its trainings fits the card, and how long
all of them and the measurements take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from rarl.planning.plan import Plan, duration


@dataclass(frozen=True)
class PlannedModel:
    """One line of a comparison: the plan of its training (None: another line's adapter, asked
    otherwise), the number of its runs, and the seconds to measure a question."""

    title: str
    runs: int
    training: Plan | None
    per_question: float

    @property
    def seconds(self) -> float:
        """Of one training."""
        if self.training is None:
            return 0.0
        return self.training.config.train.steps * self.training.step.total


@dataclass(frozen=True)
class ComparisonPlan:
    """`questions` are those of each measured data set, None where it is not at hand; both base and
    trained model are asked them in each run."""

    models: Sequence[PlannedModel]
    questions: Mapping[str, int | None]

    @property
    def training(self) -> float:
        """Seconds of all trainings."""
        return sum(one.runs * one.seconds for one in self.models)

    @property
    def known(self) -> int:
        """Questions of the data sets that are at hand."""
        return sum(count or 0 for count in self.questions.values())

    @property
    def measuring(self) -> float:
        """Seconds of all measurements on what is at hand."""
        return sum(2 * one.runs * self.known * one.per_question for one in self.models)

    def shortfalls(self) -> list[str]:
        """Returns what does not fit, each with the first model of which that is so."""
        found: dict[str, str] = {}
        for one in self.models:
            for problem in one.training.shortfalls() if one.training else ():
                found.setdefault(problem, one.title)
        return [f"{title}: {problem}" for problem, title in found.items()]


def comparison_table(planned: ComparisonPlan) -> Table:
    """Returns a row for each model."""
    table = Table("model", title="estimated, without starting and judging")
    memories = ("trainer, GiB", "sampler, GiB")
    for column in ("runs", "a step", "a training", "1,000 questions", *memories):
        table.add_column(column, justify="right")
    for one in planned.models:
        step, training, trainer, sampler = "", "", "", ""
        if one.training is not None:
            step = f"{one.training.step.total:.2g} s"
            training = duration(one.seconds)
            if (memory := one.training.memory) is not None:
                trainer, sampler = (
                    f"{sum(parts.values()):.1f} of {room:.1f}"
                    for parts, room in (
                        (memory.trainer, memory.trainer_limit),
                        (memory.sampler, memory.sampler_share),
                    )
                )
        cells = (str(one.runs), step, training, duration(1000 * one.per_question))
        table.add_row(one.title, *cells, trainer, sampler)
    return table


def comparison_lines(planned: ComparisonPlan) -> list[str]:
    """Returns what fits, the sums, and of what they are not."""
    trainings = sum(one.runs for one in planned.models if one.training)
    known = {name: count for name, count in planned.questions.items() if count is not None}
    unknown = [name for name in planned.questions if name not in known]
    listed = ", ".join(f"{name} {count:,}" for name, count in known.items())
    told = [
        f"{trainings} trainings in {duration(planned.training)}",
        f"{2 * planned.known * sum(one.runs for one in planned.models):,} replies of base and "
        f"trained models in {duration(planned.measuring)}, to the questions of "
        f"{listed or 'nothing'}",
    ]
    if unknown:
        told.append(f"not at hand, so not in these hours: {', '.join(unknown)}")
    cards = [one.training.card for one in planned.models if one.training and one.training.card]
    if cards:
        fits = "does not fit" if planned.shortfalls() else "fits"
        told.insert(0, f"{cards[0].name} with {cards[0].memory:.1f} GiB: {fits}")
    return told
