"""What an update learns from: the completions of one prompt as tokens, with their advantages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rarl.patches import PatchRule

if TYPE_CHECKING:
    from rarl.samples import Group

# Is added to a standard deviation.
EPSILON = 1e-4


def patch_grid(pixels: NDArray[np.uint8], rule: PatchRule) -> tuple[int, int, int]:
    """Returns the patches of an image along time, height and width."""
    height, width, _ = pixels.shape
    return 1, height // rule.size, width // rule.size


@dataclass(frozen=True)
class TokenGroup:
    """One prompt and its G completions, on the CPU.

    prompt_token_ids: (P,) int64, image placeholders expanded. pixels: (height, width, 3) uint8 of
    each image, of which patches are made by `patch_rule`, on the policy's device. completions: the
    token ids of each, of any length from 1. key: differs between the prompts of one update.
    sampler_logprobs: the sampler's log-prob of each token, in nats. advantages: (G,) float32. The
    last two are empty where the completions are imitated.
    """

    prompt_token_ids: NDArray[np.int64]
    pixels: tuple[NDArray[np.uint8], ...]
    patch_rule: PatchRule
    completions: list[list[int]]
    key: int
    sampler_logprobs: list[list[float]] = field(default_factory=list)
    advantages: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    @classmethod
    def of(cls, samples: Group, key: int) -> TokenGroup:
        """Returns the tokens of samples that answer one prompt.

        Raises ValueError if the prompt's pixels are missing (the samples were read from a file), or
        if some of the samples have an advantage and others have none.
        """
        prepared = samples[0].prepared
        if prepared is None:
            raise ValueError(f"the samples of '{samples[0].example.id}' hold no prepared example")
        known = [sample.advantage for sample in samples if sample.advantage is not None]
        if len(known) not in (0, len(samples)):
            raise ValueError(f"some samples of '{samples[0].example.id}' have no advantage")
        return cls(
            prepared.prompt_token_ids,
            prepared.pixels,
            prepared.patch_rule,
            [sample.rollout.completion_token_ids for sample in samples],
            key,
            [sample.rollout.sampler_logprobs for sample in samples],
            np.array(known, dtype=np.float32),
        )

    @property
    def grid(self) -> NDArray[np.int64]:
        """(images, 3) patches along time, height and width."""
        grids = [patch_grid(one, self.patch_rule) for one in self.pixels]
        return np.array(grids, dtype=np.int64).reshape(-1, 3)

    def part(self, rows: Sequence[int]) -> TokenGroup:
        """Returns these completions, with the same prompt."""
        return replace(
            self,
            completions=[self.completions[i] for i in rows],
            sampler_logprobs=[self.sampler_logprobs[i] for i in rows],
            advantages=self.advantages[list(rows)],
        )


def set_advantages(groups: Iterable[Group], scale: bool) -> None:
    """Writes on every sample how much better its total reward is than its group's mean. The value
    is exactly a float32. Raises ValueError if a sample is not scored."""
    for group in groups:
        totals = [sample.score.total for sample in group if sample.score is not None]
        if len(totals) < len(group):
            raise ValueError(f"some samples of '{group[0].example.id}' have not been scored")
        for sample, value in zip(group, group_advantages([totals], scale)[0], strict=True):
            sample.advantage = float(value)


def group_advantages(rewards: ArrayLike, scale: bool = True) -> NDArray[np.float32]:
    """(groups, G) rewards → (groups, G) advantages: reward minus the group's mean, over its
    standard deviation.

    GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the sample standard deviation (G - 1)
    and a small constant, so that a group of equal rewards gets zeros. Without `scale` the
    difference alone, which weights easy and hard questions alike (Dr. GRPO, arXiv 2503.20783,
    section 3.1).
    """
    values = np.asarray(rewards, dtype=np.float64)
    centred = values - values.mean(axis=1, keepdims=True)
    if not scale:
        return centred.astype(np.float32)
    deviation = values.std(axis=1, ddof=1, keepdims=True)
    return (centred / (deviation + EPSILON)).astype(np.float32)
