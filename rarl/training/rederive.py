"""The answer that follows from the thinking alone, by the policy itself: what the reward
`consistency` compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rarl.data.prepared import PreparedExample
from rarl.prompts import rederive_text, render
from rarl.replies.tags import parse_reply
from rarl.rollout.pool import PendingRollouts, SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.schema import Rollout

REDERIVED_TOKENS = 64  # enough for an answer; a longer one is cut and will not agree


@dataclass(frozen=True)
class PendingRederivation:
    """Answers in flight: of completion `places[i]` (group, number) by the i-th request."""

    places: list[tuple[int, int]]
    pending: PendingRollouts

    def result(self) -> dict[tuple[int, int], str]:
        """The replies by place; completions without thinking have none."""
        replies = self.pending.result()
        return {place: group[0].text for place, group in zip(self.places, replies, strict=True)}


def rederive(
    pool: SamplerPool,
    processor: Any,
    prompts: Sequence[PreparedExample],
    groups: Sequence[Sequence[Rollout]],
    max_model_length: int,
) -> PendingRederivation:
    """Asks the samplers, as they are now and greedily, for the answer that each completion's
    thinking leads to."""
    places, requests = [], []
    for index, (prepared, group) in enumerate(zip(prompts, groups, strict=True)):
        for number, rollout in enumerate(group):
            thinking = parse_reply(rollout.text, prepared.prompt.form).thinking
            if not thinking:
                continue
            text = render(processor, rederive_text(prepared.example, thinking), image=False)
            if len(processor.tokenizer(text).input_ids) + REDERIVED_TOKENS <= max_model_length:
                places.append((index, number))
                requests.append(SampleRequest(prepared.example.id, text, None))
    greedy = SamplingSettings(group_size=1, temperature=0.0, max_tokens=REDERIVED_TOKENS)
    return PendingRederivation(places, pool.submit(requests, greedy))
