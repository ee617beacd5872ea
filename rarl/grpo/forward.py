"""Log-probs of completions under the policy: the interface, and the plain way, one full sequence
per completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.distribution import BAN_BIAS, SamplingDistribution
from rarl.grpo.group import Group
from rarl.grpo.vision import VisionCache


@dataclass(frozen=True)
class ForwardOutput:
    """Of all N completions of all groups in order, padded with zeros on the right to T tokens;
    float32.

    logprobs: (N, T), with gradient. entropy: (N, T) in nats, without.
    """

    logprobs: Tensor
    entropy: Tensor


class ForwardPass(Protocol):
    def __call__(
        self,
        policy: PeftModel,
        groups: list[Group],
        distribution: SamplingDistribution,
        vision: VisionCache,
    ) -> ForwardOutput: ...


def plain_forward(
    policy: PeftModel, groups: list[Group], distribution: SamplingDistribution, vision: VisionCache
) -> ForwardOutput:
    """Every completion with its own copy of prompt and image, through the model's own forward.

    For any model that transformers can run, and the yardstick of the shared-prefix pass, with which
    it has no code in common. `vision` is not used. The head runs on completion positions only.
    """
    model: Any = policy.get_base_model()
    device = model.device
    sequences, prompts = [], []
    for group in groups:
        for completion in group.completions:
            sequences.append(
                torch.tensor([*group.prompt_token_ids.tolist(), *completion], device=device)
            )
            prompts.append(len(group.prompt_token_ids))
    lengths = [len(sequence) for sequence in sequences]
    input_ids = pad_sequence(sequences, batch_first=True, padding_value=0)
    attention_mask = (
        torch.arange(input_ids.shape[1], device=device)[None]
        < torch.tensor(lengths, device=device)[:, None]
    )
    repeats = [len(group.completions) for group in groups]
    patches = [
        torch.from_numpy(g.patches) for g, n in zip(groups, repeats, strict=True) for _ in range(n)
    ]
    grids = [
        torch.from_numpy(g.grid) for g, n in zip(groups, repeats, strict=True) for _ in range(n)
    ]
    hidden = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        pixel_values=torch.cat(patches).to(device, model.dtype),
        image_grid_thw=torch.stack(grids).to(device),
        mm_token_type_ids=(input_ids == model.config.image_token_id).int() * attention_mask,
        use_cache=False,
    ).last_hidden_state
    rows = [
        completion_logprobs(
            model.lm_head(hidden[i, p - 1 : n - 1]), input_ids[i, p:n], distribution
        )
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    logprobs, entropy = (
        pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True)
    )
    return ForwardOutput(logprobs, entropy)


def completion_logprobs(
    logits: Tensor, token_ids: Tensor, distribution: SamplingDistribution
) -> tuple[Tensor, Tensor]:
    """(t, vocabulary) logits and (t,) ids → (t,) log-probs and (t,) entropies of what the sampler
    draws from."""
    bias = torch.zeros(logits.shape[-1], device=logits.device)
    bias[distribution.banned_token_ids] = BAN_BIAS
    logprobs = torch.log_softmax((logits.float() + bias) / distribution.temperature, dim=-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(dim=-1)
    return logprobs.gather(-1, token_ids[:, None]).squeeze(-1), entropy
