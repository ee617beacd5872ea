"""The distribution that completions are drawn from. Sampler and trainer must agree on it to the bit
of a log-prob, so both read it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Sampling one of these would leave a completion whose image tokens have no image.
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BAN_BIAS = -100.0  # is added to the logits of banned tokens


@dataclass(frozen=True)
class SamplingDistribution:
    """How the sampler's distribution differs from the model's softmax: the banned tokens' logits
    are lowered by BAN_BIAS, then all logits are divided by the temperature."""

    temperature: float
    banned_token_ids: list[int]


MODEL_SOFTMAX = SamplingDistribution(temperature=1.0, banned_token_ids=[])


def banned_token_ids(tokenizer: Any) -> list[int]:
    """Returns the ids of the vision tokens, which must not be sampled."""
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in VISION_TOKENS]
