"""Does a reward see what a thinking says? It is asked about copies of replies that say something
else (see `copies.py`), and about texts that say the same of every image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rarl.replies.tags import target_text
from rarl.rewards import Reward
from rarl.rewards.copies import COPIES, DENIAL, SENTENCE, SILENT, with_thinking
from rarl.rewards.total import call_reward, columns_of
from rarl.samples import Sample
from rarl.schema import Example, Prompt, Rollout

# The rewards that read a thinking as text, with nobody else asked.
READS_THINKING = ("reasoning", "facts")
NEEDED = {"reasoning": "rationale", "facts": "facts"}  # column of the data, by reward
MOST_COPIED = 16  # replies of a step, so that it takes a few hundredths of a second
BLIND_SENTENCES = 12  # of a text that says the same of every image of an organ


@dataclass(frozen=True)
class Gains:
    """What replies earn above a thinking that says nothing, in sum: the originals, and their
    copies."""

    originals: float
    copies: float


def copied_gains(samples: Sequence[Sample], rewards: Mapping[str, Reward]) -> dict[str, Gains]:
    """Returns the gains by "reward/kind of copy", of an even choice of the samples. Those count
    whose original earns more than silence and whose copy says something else."""
    chosen = samples[:: max(1, -(-len(samples) // MOST_COPIED))]
    asked = {name: rewards[name] for name in READS_THINKING if name in rewards}
    silent = values_of([with_text(one, changed(one, SILENT)) for one in chosen], asked)
    found: dict[str, Gains] = {}
    for kind, change in COPIES.items():
        texts = [with_thinking(one.rollout.text, change) for one in chosen]
        copies = values_of([with_text(*pair) for pair in zip(chosen, texts, strict=True)], asked)
        for name in asked:
            originals, copied = 0.0, 0.0
            places = [place for place, text in enumerate(texts) if text is not None]
            for place in places:
                own, value, nothing = (
                    chosen[place].rewards[name],
                    copies[name][place],
                    silent[name][place],
                )
                if own is not None and value is not None and nothing is not None and own > nothing:
                    originals, copied = originals + own - nothing, copied + value - nothing
            found[f"{name}/{kind}"] = Gains(originals, copied)
    return found


def changed(sample: Sample, thinking: str) -> str | None:
    return with_thinking(sample.rollout.text, lambda _: thinking)


def with_text(sample: Sample, text: str | None) -> Sample:
    """Returns the sample as if this had been the reply; None leaves it as it is."""
    return sample if text is None else replace(sample, rollout=replace(sample.rollout, text=text))


def values_of(
    samples: Sequence[Sample], rewards: Mapping[str, Reward]
) -> dict[str, list[float | None]]:
    """Returns what each reward pays for each sample."""
    columns = columns_of(samples) if samples else {}
    return {
        name: call_reward(name, one, columns) if samples else [] for name, one in rewards.items()
    }


def scorable(examples: Sequence[Example], reward: Reward, name: str) -> float:
    """Returns the share of examples for which a reward has a value, whatever is replied."""
    values = values_of([as_sample(one, SILENT) for one in examples], {name: reward})[name]
    return sum(value is not None for value in values) / len(values)


def blind_means(
    examples: Sequence[Example], known: Sequence[Example], reward: Reward, name: str
) -> dict[str, float]:
    """Returns what texts earn on average that say the same of every image of an organ: what is
    most often denied of it, what is most often there, and what is most often true of it at all,
    by the material of the examples `known`."""
    told: dict[str | None, Counter[str]] = {}
    for one in known:
        told.setdefault(one.organ, Counter()).update(list(dict.fromkeys(material(one, name))))
    means = {}
    for kind in ("all is normal", "all is there", "what is usual"):
        texts = {organ: blind_text(counts, kind) for organ, counts in told.items()}
        asked = [as_sample(one, texts.get(one.organ) or SILENT) for one in examples]
        values = [value for value in values_of(asked, {name: reward})[name] if value is not None]
        if values:
            means[kind] = sum(values) / len(values)
    return means


def material(example: Example, name: str) -> Iterator[str]:
    """Yields the sentences that a reward compares a thinking with."""
    given = example.facts or () if name == "facts" else SENTENCE.findall(example.rationale or "")
    yield from (sentence.strip() for sentence in given if sentence.strip())


def blind_text(counts: Counter[str], kind: str) -> str:
    """Returns the most frequent sentences of one kind."""
    sentences = [sentence for sentence, _ in counts.most_common()]
    if kind != "what is usual":
        normal = kind == "all is normal"
        sentences = [one for one in sentences if is_normal(one) == normal]
    return " ".join(sentences[:BLIND_SENTENCES])


def is_normal(sentence: str) -> bool:
    return bool(DENIAL.search(sentence)) or " normal" in sentence


def as_sample(example: Example, thinking: str) -> Sample:
    """Returns a right reply with this thinking."""
    text = target_text("think", thinking, example.answer)
    return Sample(example, Prompt("", "plain/0", "think"), Rollout(text, [], "stop", 0))
