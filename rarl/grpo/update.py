"""One batch of groups → one optimizer step, or a few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.distribution import SamplingDistribution
from rarl.errors import UserError
from rarl.grpo.forward import ForwardPass
from rarl.grpo.group import Group
from rarl.grpo.loss import LossInputs, LossOutput, LossSettings, StepTotals, compute_loss
from rarl.grpo.vision import VisionCache
from rarl.grpo.workers import ALONE, Workers


@dataclass(frozen=True)
class ScoredGroup:
    """A group, what its sampler thought of each token, and the (G,) advantages."""

    group: Group
    sampler_logprobs: list[list[float]]
    advantages: NDArray[np.float32]

    def part(self, rows: Sequence[int]) -> ScoredGroup:
        """These completions, with the same prompt."""
        group = replace(self.group, completions=[self.group.completions[i] for i in rows])
        return ScoredGroup(
            group, [self.sampler_logprobs[i] for i in rows], self.advantages[list(rows)]
        )


@dataclass(frozen=True)
class UpdateSettings:
    """`shared_prefix` says how the forward pass counts tokens. `max_drift` bounds the mean
    |log-prob of the policy - of the sampler|; None where they are meant to differ."""

    loss: LossSettings
    epochs: int
    max_grad_norm: float
    micro_batch_tokens: int
    shared_prefix: bool
    max_completion_tokens: int
    max_drift: float | None


@dataclass(frozen=True)
class UpdateStats:
    """Means over the step's completion tokens in the first epoch, but for `loss`, `grad_norm` and
    `clipped`, which are the last one's. `drift` is |log-prob of the policy - of the sampler|. `kl`
    is None when it has no weight: the reference pass is then skipped."""

    loss: float
    grad_norm: float
    drift: float
    drift_max: float
    kl: float | None
    clipped: float
    entropy: float


EXPLODED = 1e6  # norm of a gradient before it is clipped; what is learnt from is below a thousand


class NotFinite(UserError):
    """A log-prob or gradient that is no number, or beyond all measure: nothing can be learnt from
    it."""


class SamplerMismatch(UserError):
    """The sampler's log-probs are not the policy's: it samples from other weights."""


@dataclass
class Fixed:
    """What a micro-batch's first epoch finds and later ones use again."""

    old_logprobs: Tensor
    reference_logprobs: Tensor | None


@dataclass
class Sums:
    """Over the tokens of the micro-batches of one epoch."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0
    drift: float = 0.0
    drift_max: float = 0.0

    def add(self, out: LossOutput, inputs: LossInputs, entropy: Tensor) -> None:
        difference = (inputs.old_logprobs - inputs.sampler_logprobs).abs()[inputs.mask]
        self.loss += out.loss.item()
        self.kl += out.kl.item()
        self.clipped += out.clipped.item()
        self.entropy += entropy[inputs.mask].sum().item()
        self.drift += difference.sum().item()
        self.drift_max = max(self.drift_max, difference.max().item())

    def over(self, workers: Workers) -> Sums:
        """Of all workers."""
        loss, kl, clipped, entropy, drift = workers.sum(
            [self.loss, self.kl, self.clipped, self.entropy, self.drift]
        )
        return Sums(loss, kl, clipped, entropy, drift, workers.max(self.drift_max))


def update_policy(
    policy: PeftModel,
    optimizer: torch.optim.Optimizer,
    groups: list[ScoredGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    settings: UpdateSettings,
    workers: Workers = ALONE,
) -> UpdateStats:
    """One optimizer step per epoch over the `groups` of all workers, each with the gradient of all
    of them.

    Raises SamplerMismatch and NotFinite before the weights change, in every worker alike.
    """
    own_tokens = sum(len(c) for g in groups for c in g.group.completions)
    own_completions = sum(len(g.group.completions) for g in groups)
    completions, tokens = map(round, workers.sum([own_completions, own_tokens]))
    totals = StepTotals(completions, tokens, settings.max_completion_tokens)
    batches = list(micro_batches(groups, settings.micro_batch_tokens, settings.shared_prefix))
    vision = VisionCache()
    fixed: list[Fixed] = []
    first = Sums()
    for epoch in range(settings.epochs):
        sums = Sums()
        optimizer.zero_grad()
        for index, batch in enumerate(batches):
            current = forward(policy, [scored.group for scored in batch], distribution, vision)
            if epoch == 0:
                reference = None
                if settings.loss.kl_beta > 0:
                    reference = reference_logprobs(policy, batch, forward, distribution, vision)
                fixed.append(Fixed(current.logprobs.detach(), reference))
            inputs = loss_inputs(batch, current.logprobs, fixed[index])
            out = compute_loss(inputs, totals, settings.loss)
            out.loss.backward()
            sums.add(out, inputs, current.entropy)
        sums = sums.over(workers)
        if epoch == 0:
            first = sums
            if settings.max_drift is not None:
                check_mismatch(sums.drift / tokens, sums.drift_max, settings.max_drift)
        grad_norm = clip_gradient(policy, settings.max_grad_norm, workers)
        optimizer.step()
    return UpdateStats(
        loss=sums.loss,
        grad_norm=grad_norm,
        drift=first.drift / tokens,
        drift_max=first.drift_max,
        kl=first.kl / tokens if settings.loss.kl_beta > 0 else None,
        clipped=sums.clipped / tokens,
        entropy=first.entropy / tokens,
    )


def clip_gradient(policy: torch.nn.Module, max_norm: float, workers: Workers = ALONE) -> float:
    """Sums it over the workers and clips it; returns its norm before. Raises NotFinite."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    workers.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not norm < EXPLODED:
        raise NotFinite(
            f"the gradient is not finite or has exploded (its norm is {norm:.3g}); the weights were left as they were. "
            "Lower train.learning_rate or train.max_grad_norm in a new run_dir"
        )
    return float(norm.item())


def micro_batches(
    groups: list[ScoredGroup], budget: int, shared: bool
) -> Iterator[list[ScoredGroup]]:
    """Cuts the step into parts of at most `budget` tokens. With a `shared` prompt, a part counts it
    once per group.

    Groups stay whole where they fit, since a group that is cut pays for its prompt again. A single
    completion that does not fit goes alone.
    """
    part: list[ScoredGroup] = []
    used = 0
    for scored in groups:
        for piece, cost in pieces(scored, budget, shared):
            if part and used + cost > budget:
                yield part
                part, used = [], 0
            part.append(piece)
            used += cost
    if part:
        yield part


def pieces(scored: ScoredGroup, budget: int, shared: bool) -> Iterator[tuple[ScoredGroup, int]]:
    """The group itself, or as few parts of it as the budget allows, each with its tokens."""
    prompt = len(scored.group.prompt_token_ids)
    once, each = (prompt, 0) if shared else (0, prompt)
    start, used = 0, once
    for index, completion in enumerate(scored.group.completions):
        cost = each + len(completion)
        if index > start and used + cost > budget:
            yield scored.part(range(start, index)), used
            start, used = index, once
        used += cost
    yield scored.part(range(start, len(scored.group.completions))), used


def reference_logprobs(
    policy: PeftModel,
    batch: list[ScoredGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    vision: VisionCache,
) -> Tensor:
    """(N, T) log-probs of the base model: the policy with its adapter switched off."""
    with torch.no_grad(), policy.disable_adapter():
        return forward(policy, [scored.group for scored in batch], distribution, vision).logprobs


def loss_inputs(batch: list[ScoredGroup], logprobs: Tensor, fixed: Fixed) -> LossInputs:
    device = logprobs.device
    sampled = [torch.tensor(row) for scored in batch for row in scored.sampler_logprobs]
    lengths = torch.tensor([len(row) for row in sampled], device=device)
    mask: Tensor = torch.arange(logprobs.shape[1], device=device)[None] < lengths[:, None]
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=fixed.old_logprobs,
        sampler_logprobs=pad_sequence(sampled, batch_first=True).to(device),
        reference_logprobs=fixed.reference_logprobs,
        advantages=torch.from_numpy(np.concatenate([scored.advantages for scored in batch])).to(
            device
        ),
        mask=mask,
    )


def measure_mismatch(
    policy: PeftModel, scored: ScoredGroup, forward: ForwardPass, distribution: SamplingDistribution
) -> tuple[float, float]:
    """Mean and largest |log-prob of the policy - of the sampler| over one group's tokens, without a
    gradient."""
    with torch.no_grad():
        rows = forward(policy, [scored.group], distribution, VisionCache()).logprobs
    sampled = pad_sequence(
        [torch.tensor(row) for row in scored.sampler_logprobs], batch_first=True
    ).to(rows.device)
    difference = (rows - sampled).abs()
    tokens = sum(len(row) for row in scored.sampler_logprobs)
    return difference.sum().item() / tokens, difference.max().item()


def check_mismatch(mean: float, largest: float, bound: float) -> None:
    if not math.isfinite(mean):
        raise NotFinite(
            "a log-prob of the policy or of the sampler is not finite; the weights were left as they were. Look at the "
            "model's files, then at train.learning_rate"
        )
    if mean > bound:
        raise SamplerMismatch(
            f"the sampler does not sample from the policy: its log-probs differ by {mean:.2g} on average (at most "
            f"{largest:.2g}), above the bound of {bound:.2g} (train.max_sampler_mismatch). It holds a stale or another "
            "adapter, or another base model; the weights were not changed"
        )
