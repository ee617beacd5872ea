"""What the shipped 2B recipe pays for the thinking of a right answer, on VQA-RAD as the README
prepares it: true thinking against nonsense, contradiction and another image's findings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import findings as protocol
import pytest

from rarl.config import load_config
from rarl.data.parquet import ParquetRows
from rarl.prepare.convert import prepare_dataset
from rarl.reading import Reader
from rarl.replies.facts import facts_value
from rarl.replies.tags import target_text
from rarl.rewards.copies import negated, shuffled
from rarl.rewards.registry import find_rewards
from rarl.rewards.total import score_groups
from rarl.rollout.pool import SamplerPool
from rarl.samples import Sample, flatten
from rarl.schema import Example
from tests.samples import reply_to

RECIPE = "configs/recipes/qwen2vl_2b/rarl.yaml"
CASES = 200


@pytest.fixture(scope="module")
def prepared(vqa_rad: Path, tmp_path_factory: pytest.TempPathFactory) -> ParquetRows:
    out = tmp_path_factory.mktemp("vqa-rad")
    prepare_dataset("vqa-rad", vqa_rad, out, "image-disjoint", facts="siblings")
    return ParquetRows(out / "train.parquet")


def test_true_thinking_earns_more_than_what_is_not(
    prepared: ParquetRows, vqa_rad: Path, pool: SamplerPool, model_path: str
) -> None:
    """The thinking says in other people's words what the data know of the image. The tiny model,
    whose probabilities stand in for those of the base model, has never read such text."""
    told = {Path(one.image).stem: one for one in protocol.read_pairs(vqa_rad)}
    known = [
        (one, thinking)
        for one in prepared.read(range(len(prepared)))
        if (thinking := in_other_words(one, told.get(Path(one.image_id).stem)))
        and shuffled(thinking) != thinking
    ]
    known = random.Random(0).sample(known, CASES)
    examples, honest = [one for one, _ in known], [thinking for _, thinking in known]
    bad: list[Callable[[int], str]] = [
        lambda index: shuffled(honest[index]),
        lambda index: negated(honest[index]),
        lambda index: another(index, examples, honest),
    ]
    pairs = [
        [
            reply_to(one, target_text("think", thinking, one.answer))
            for thinking in (honest[index], bad[index % len(bad)](index))
        ]
        for index, one in enumerate(examples)
    ]
    score(pairs, pool, model_path, prepared)
    assert sum(total(good) > total(other) for good, other in pairs) >= 0.95 * CASES


def total(sample: Sample) -> float:
    assert sample.score is not None
    return sample.score.total


def in_other_words(example: Example, pair: protocol.Pair | None) -> str:
    """What others said of the image that a fact of the example says too."""
    if pair is None or not example.facts:
        return ""
    return " ".join(
        said
        for true, said in zip(pair.true, pair.said, strict=True)
        if facts_value(true, example.facts).supported
    )


def another(index: int, examples: Sequence[Example], honest: Sequence[str]) -> str:
    """The findings of the next image."""
    order = [*range(index + 1, len(examples)), *range(index)]
    return next(honest[one] for one in order if examples[one].image_id != examples[index].image_id)


def score(
    groups: list[list[Sample]], pool: SamplerPool, model_path: str, data: ParquetRows
) -> None:
    settings = load_config(RECIPE, []).rewards
    reader = Reader(pool, settings, model_path, 512, data.questions_by_image())
    for reading in reader.start(flatten(groups), use_adapter=False):
        reading.write()
    score_groups(groups, find_rewards(settings), settings)
