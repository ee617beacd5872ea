"""Log-probs of completions under the policy: the plain forward, one full sequence per completion.

`ForwardPass` is the interface. A faster pass that shares the prompt within a group has the same signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.rollout.sampler import BAN_BIAS


@dataclass(frozen=True)
class Group:
    """One prompt and its completions, on the CPU.

    prompt_token_ids: (P,) int64, image placeholder expanded. patches: (patches, D) float32. grid: (3,) int64.
    completions: token ids of each, of any length from 1.
    """

    prompt_token_ids: NDArray[np.int64]
    patches: NDArray[np.float32]
    grid: NDArray[np.int64]
    completions: list[list[int]]


@dataclass(frozen=True)
class SamplingDistribution:
    """How the sampler's distribution differs from the model's softmax: it is what log-probs are taken of."""

    temperature: float
    banned_token_ids: list[int]


class ForwardPass(Protocol):
    def __call__(self, policy: PeftModel, groups: list[Group], distribution: SamplingDistribution) -> Tensor:
        """(N, T) float32 log-probs of all completions of all groups in order, padded with zeros on the right."""


def plain_forward(policy: PeftModel, groups: list[Group], distribution: SamplingDistribution) -> Tensor:
    """Every completion with its own copy of prompt and image. The head runs on completion positions only."""
    model: Any = policy.get_base_model()
    device = model.device
    sequences, prompts = [], []
    for group in groups:
        for completion in group.completions:
            sequences.append(torch.tensor([*group.prompt_token_ids.tolist(), *completion], device=device))
            prompts.append(len(group.prompt_token_ids))
    lengths = [len(sequence) for sequence in sequences]
    input_ids = pad_sequence(sequences, batch_first=True, padding_value=0)
    attention_mask = (
        torch.arange(input_ids.shape[1], device=device)[None] < torch.tensor(lengths, device=device)[:, None]
    )
    repeats = [len(group.completions) for group in groups]
    patches = [torch.from_numpy(g.patches) for g, n in zip(groups, repeats, strict=True) for _ in range(n)]
    grids = [torch.from_numpy(g.grid) for g, n in zip(groups, repeats, strict=True) for _ in range(n)]
    hidden = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        pixel_values=torch.cat(patches).to(device, model.dtype),
        image_grid_thw=torch.stack(grids).to(device),
        mm_token_type_ids=(input_ids == model.config.image_token_id).int() * attention_mask,
        use_cache=False,
    ).last_hidden_state
    rows = [
        completion_logprobs(model.lm_head(hidden[i, p - 1 : n - 1]), input_ids[i, p:n], distribution)
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return pad_sequence(rows, batch_first=True)


def completion_logprobs(logits: Tensor, token_ids: Tensor, distribution: SamplingDistribution) -> Tensor:
    """(t, vocabulary) logits and (t,) ids → (t,) log-probs under the distribution that the sampler draws from."""
    bias = torch.zeros(logits.shape[-1], device=logits.device)
    bias[distribution.banned_token_ids] = BAN_BIAS
    logprobs = torch.log_softmax((logits.float() + bias) / distribution.temperature, dim=-1)
    return logprobs.gather(-1, token_ids[:, None]).squeeze(-1)
