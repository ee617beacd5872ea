"""Is there anything to learn? What several replies of the untrained model to each question say of
that, before any training.

Everything is estimated without bias from n replies to a question: of which c are right, for pass@k;
with which totals of the configuration's rewards, for the groups of G that would have no spread.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarl.intervals import change_intervals95, fraction_intervals95
from rarl.replies.answers import is_right
from rarl.samples import Group, Sample

ROUNDED = 6  # digits of a total: rewards that differ by less are the same
ALL = "all"
# Shares from which the advice is what it is.
WELL_FORMED, BLIND, KNOWN, USEFUL = 0.5, 0.85, 0.97, 0.1
# Agreement with the reference beyond chance (Cohen's kappa), the upper end of its interval, under
# which replies say nothing of the image, and of how many images the same must be asked for it to be
# told. The base of the tiny world has 0.08 (0.04 to 0.13), and learns.
AGREEMENT, ASKED_OF = 0.08, 5
FEWEST = 20  # questions, under which the advice is called a guess
ADVICE = {
    "form": "get the form right first",
    "blind": "the questions can be answered without the image",
    "known": "there is nothing to gain",
    "sft": "supervised fine-tuning first",
    "rl": "reinforcement learning",
}


@dataclass(frozen=True)
class ProbedShare:
    """A mean over questions in [0, 1], with its 95 % interval over patients or images."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], images: Sequence[str]) -> ProbedShare:
        ((low, high),) = fraction_intervals95([(values, images)])
        return cls(math.fsum(values) / len(values), low, high)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ({100 * self.low:.0f}–{100 * self.high:.0f})"


@dataclass(frozen=True)
class Estimates:
    """What the replies to the questions of one kind say.

    greedy: whether the likeliest reply is right. right: of the sampled ones. passes: pass@k by k.
    well_formed: of the sampled ones. mixed: groups of G in which some replies are right and some
    are wrong. without_spread: groups of G whose replies all earn the same, None where nothing was
    paid. agreement: see `agreement_of`.
    """

    data: str
    kind: str
    questions: int
    images: int
    greedy: ProbedShare
    right: ProbedShare
    passes: dict[int, ProbedShare]
    well_formed: ProbedShare
    mixed: ProbedShare
    without_spread: ProbedShare | None
    agreement: ProbedShare | None


@dataclass(frozen=True)
class Pay:
    """What a reward pays the sampled replies: the mean of what it can score (None: nothing), the
    share that it cannot, and of the groups in which all values are the same."""

    mean: float | None
    silent: float
    without_spread: float


@dataclass(frozen=True)
class Probe:
    """All parts by data set and kind, the rewards by name, what no image is needed for, by data set
    and floor, and the agreement over all data sets."""

    parts: list[Estimates]
    rewards: dict[str, Pay] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    agreement: ProbedShare | None = None

    @property
    def ks(self) -> list[int]:
        """The numbers of replies that pass@k is shown of."""
        known = self.parts[0].passes
        return sorted({1, 4, max(known)} & known.keys())

    def part(self, data: str, kind: str = ALL) -> Estimates:
        return next(one for one in self.parts if (one.data, one.kind) == (data, kind))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the probability that one of k replies is right, where c of n are: 1 − C(n−c, k) /
    C(n, k), without bias (Chen et al., arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def alike(values: Sequence[float | None], group: int) -> float:
    """Returns the probability that `group` of these values, drawn without replacement, are all the
    same."""
    counts = Counter(None if value is None else round(value, ROUNDED) for value in values)
    return math.fsum(math.comb(one, group) for one in counts.values()) / math.comb(
        len(values), group
    )


def parts_of(
    data: str, groups: Sequence[Group], greedy: Sequence[Sample], group_size: int, paid: bool
) -> list[Estimates]:
    """Returns the whole data set first, then each answer type if there are several. `greedy` has
    one reply to each group's question, in their order. `paid`: the samples' scores are those of
    training."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        kinds[group[0].example.answer_type].append(place)
    asked = {ALL: list(range(len(groups)))}
    if len(kinds) > 1:
        asked |= dict(sorted(kinds.items()))
    return [
        part_of(
            data, kind, [groups[i] for i in places], [greedy[i] for i in places], group_size, paid
        )
        for kind, places in asked.items()
    ]


def part_of(
    data: str,
    kind: str,
    groups: Sequence[Group],
    greedy: Sequence[Sample],
    group_size: int,
    paid: bool,
) -> Estimates:
    images = [group[0].example.image_id for group in groups]
    units = [group[0].example.unit for group in groups]

    def share(values: Sequence[float]) -> ProbedShare:
        return ProbedShare.of(values, units)

    n = len(groups[0])
    right = [[one.is_right for one in group] for group in groups]
    totals = [[one.score.total for one in group if one.score] for group in groups]
    ks = [2**power for power in range(n.bit_length()) if 2**power <= n]
    return Estimates(
        data=data,
        kind=kind,
        questions=len(groups),
        images=len(set(images)),
        greedy=share([float(one.is_right) for one in greedy]),
        right=share([sum(own) / n for own in right]),
        passes={k: share([pass_at_k(n, sum(own), k) for own in right]) for k in ks},
        well_formed=share([sum(one.reply.well_formed for one in group) / n for group in groups]),
        mixed=share([1.0 - alike(own, group_size) for own in right]),
        without_spread=share([alike(own, group_size) for own in totals]) if paid else None,
        agreement=agreement_of(groups),
    )


def agreement_of(*data_sets: Sequence[Group]) -> ProbedShare | None:
    """Returns Cohen's kappa between answers and references, (o − e) / (1 − e): o is how often a
    reply is right, and e how often it would be with the reference of another image of which the
    same is asked. Guessing has 0, however often it is right. Only questions count that are asked of
    several images of a data set and are not answered rightly already, and not those that ask for
    boxes, which are places in one image; None where there are none."""
    asked: dict[tuple[int, str], list[Group]] = defaultdict(list)
    for number, groups in enumerate(data_sets):
        for group in groups:
            if group[0].example.answer_type != "boxes":
                asked[number, group[0].example.question].append(group)
    beyond: list[float] = []
    expected: list[float] = []
    images: list[str] = []
    for (number, _), same in asked.items():
        rights = crossed(same) if len(same) >= ASKED_OF else np.ones((1, 1))
        if rights.diagonal().mean() >= KNOWN:
            continue
        alone, chance = beyond_chance(rights)
        beyond += alone.tolist()
        expected += [chance] * len(same)
        images += [f"{number}/{group[0].example.unit}" for group in same]
    if not beyond:
        return None
    room = 1.0 - math.fsum(expected) / len(expected)
    ((low, high),) = change_intervals95([(beyond, images)])
    scale = 1.0 / room if room > 0 else 0.0
    return ProbedShare(scale * math.fsum(beyond) / len(beyond), scale * low, scale * high)


def crossed(same: Sequence[Group]) -> NDArray[np.float64]:
    """Returns how often the replies of each group (row) would be right with the reference of each
    (column), shape (groups, groups). All were asked the same."""
    examples = [group[0].example for group in same]
    references = [(one.answer, one.answer_type, one.options, one.also_right) for one in examples]
    known = {one: column for column, one in enumerate(dict.fromkeys(references))}

    @cache
    def matches(given: str | None) -> NDArray[np.float64]:
        rights = [
            is_right(given, reference, kind, options=options, also_right=also_right)
            for reference, kind, options, also_right in known
        ]
        return np.array(rights, float)

    replies = [Counter(one.answer for one in group) for group in same]
    rights = np.array(
        [
            sum(times * matches(answer) for answer, times in own.items()) / own.total()
            for own in replies
        ]
    )
    return rights[:, [known[one] for one in references]]


def beyond_chance(rights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Returns what each image adds to o − e, whose mean they have, and e, from what `crossed`
    returns. An image is there twice, with its replies and as a reference to others' replies. Both
    parts of chance are taken off (the first-order term of a U-statistic; Hoeffding 1948), so that
    one who always says the same has 0 of each image, and not only on average."""
    own, n = rights.diagonal(), len(rights)
    alone = own - rights.mean(axis=1) - rights.mean(axis=0) + rights.mean()
    chance = float(rights.sum() - own.sum()) / (n * (n - 1))
    return alone * n / (n - 1), chance


def pay_of(groups: Sequence[Group], group_size: int) -> dict[str, Pay]:
    """Returns what each reward pays, by name."""
    found = {}
    for name in groups[0][0].rewards:
        values = [[one.rewards[name] for one in group] for group in groups]
        known = [value for own in values for value in own if value is not None]
        same = [alike(own, group_size) for own in values]
        count = sum(map(len, values))
        found[name] = Pay(
            mean=math.fsum(known) / len(known) if known else None,
            silent=1.0 - len(known) / count,
            without_spread=math.fsum(same) / len(same),
        )
    return found


def advise(probe: Probe, train: str) -> tuple[str, str]:
    """Returns the advice, a key of ADVICE, and its reason in words, from the questions of the
    training data, `train`."""
    advice, reason = likely_advice(probe, train)
    asked = probe.part(train).questions
    if asked < FEWEST:
        reason = f"with {asked} questions hardly more than a guess, ask more: {reason}"
    return advice, reason


def likely_advice(probe: Probe, train: str) -> tuple[str, str]:
    """Returns the same, however few questions were asked."""
    part = probe.part(train)
    most = max(part.passes)
    if part.well_formed.mean < WELL_FORMED:
        return "form", (
            f"only {100 * part.well_formed.mean:.0f} % of the replies have the form that is asked "
            "for, and what has none earns nothing. Try other prompts (prompts.train), the option "
            "`partial` of the reward `format`, or a few steps of `rarl sft` before"
        )
    for data, floors in probe.floors.items():
        for name, value in floors.items():
            if value >= BLIND:
                return "blind", (
                    f"the {name} of the training data is right {100 * value:.0f} % of the time on "
                    f"{data}: a gain there says little of the image"
                )
    if part.greedy.mean >= KNOWN:
        return "known", f"{100 * part.greedy.mean:.0f} % are right before any training"
    agreement = probe.agreement
    blind = agreement is not None and agreement.high < AGREEMENT
    if blind or part.mixed.mean < USEFUL:
        why = (
            f"where not all is known, answers agree with the images no better than chance (kappa "
            f"{agreement.mean:.2f}, at most {agreement.high:.2f})"
            if blind and agreement is not None
            else f"in {100 * (1 - part.mixed.mean):.0f} % of the groups all replies are right or "
            f"all are wrong, and {100 * part.passes[most].mean:.0f} % of the questions are "
            f"answered rightly once in {most}"
        )
        return "sft", f"{why}: reinforcement finds nothing to reinforce"
    return "rl", (
        f"{100 * part.greedy.mean:.0f} % are right greedily, and "
        f"{100 * part.passes[most].mean:.0f} % once in {most}: what is to be learnt is sampled, "
        f"and {100 * part.mixed.mean:.0f} % of the groups have right and wrong replies to learn "
        "from"
    )


def as_json(probe: Probe, train: str) -> dict[str, Any]:
    """Returns what `probe.json` holds."""
    advice, reason = advise(probe, train)
    return {"advice": advice, "reason": reason} | asdict(probe)
