"""What an update learns from: the completions of one prompt as tokens, with their advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rarl.samples import Group


@dataclass(frozen=True)
class TokenGroup:
    """One prompt and its G completions, on the CPU.

    prompt_token_ids: (P,) int64, image placeholder expanded. patches: (patches, D) float32. grid:
    (3,) int64. completions: the token ids of each, of any length from 1. key: differs between the
    prompts of one update. sampler_logprobs: the sampler's log-prob of each token, in nats.
    advantages: (G,) float32. The last two are empty where the completions are imitated.
    """

    prompt_token_ids: NDArray[np.int64]
    patches: NDArray[np.float32]
    grid: NDArray[np.int64]
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
            prepared.patches,
            prepared.grid,
            [sample.rollout.completion_token_ids for sample in samples],
            key,
            [sample.rollout.sampler_logprobs for sample in samples],
            np.array(known, dtype=np.float32),
        )

    def part(self, rows: Sequence[int]) -> TokenGroup:
        """Returns these completions, with the same prompt."""
        return replace(
            self,
            completions=[self.completions[i] for i in rows],
            sampler_logprobs=[self.sampler_logprobs[i] for i in rows],
            advantages=self.advantages[list(rows)],
        )
