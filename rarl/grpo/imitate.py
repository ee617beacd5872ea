"""One step of imitation: the mean negative log-likelihood of the target tokens goes down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel

from rarl.distribution import MODEL_SOFTMAX
from rarl.grpo.forward import ForwardPass, VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.update import clip_gradient
from rarl.grpo.workers import ALONE, Workers


@dataclass(frozen=True)
class ImitationStats:
    """`loss` in nats per target token, before the step; `tokens` and both others are those of all
    workers."""

    loss: float
    grad_norm: float
    tokens: int


def imitate(
    policy: PeftModel,
    optimizer: torch.optim.Optimizer,
    groups: list[TokenGroup],
    forward: ForwardPass,
    micro_batch_tokens: int,
    max_grad_norm: float,
    workers: Workers = ALONE,
) -> ImitationStats:
    """Makes one optimizer step on the mean over the target tokens of all workers; a group holds one
    target. Raises NotFinite before the weights change, in every worker alike."""
    tokens = round(workers.sum([sum(len(group.completions[0]) for group in groups)])[0])
    optimizer.zero_grad()
    own = 0.0
    with workers.local():
        for part in packed(groups, micro_batch_tokens):
            logprobs = forward(policy, part, MODEL_SOFTMAX, VisionCache()).logprobs
            # The padding has log-prob 0.
            loss = -logprobs.sum() / tokens
            loss.backward()
            own += loss.item()
    (loss_of_all,) = workers.sum([own])
    grad_norm = clip_gradient(policy, max_grad_norm, workers)
    optimizer.step()
    return ImitationStats(loss_of_all, grad_norm, tokens)


def packed(groups: list[TokenGroup], budget: int) -> Iterator[list[TokenGroup]]:
    """Cuts the batch into parts of at most `budget` tokens; a sequence that is longer goes
    alone."""
    part: list[TokenGroup] = []
    used = 0
    for group in groups:
        cost = len(group.prompt_token_ids) + len(group.completions[0])
        if part and used + cost > budget:
            yield part
            part, used = [], 0
        part.append(group)
        used += cost
    if part:
        yield part
