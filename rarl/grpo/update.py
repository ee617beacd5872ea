"""One batch of groups → one optimizer step, or a few."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rarl.config import Config, GrpoConfig, TrainConfig
from rarl.distribution import SamplingDistribution
from rarl.errors import UserError
from rarl.grpo.forward import ForwardPass, VisionCache
from rarl.grpo.group import TokenGroup
from rarl.grpo.loss import LossInputs, LossOutput, StepTotals, compute_loss
from rarl.grpo.workers import ALONE, Workers


@dataclass(frozen=True)
class UpdateSettings:
    """`shared_prefix` says how the forward pass counts tokens. `max_drift` bounds the mean
    |log-prob of the policy - of the sampler|; None where they are meant to differ."""

    grpo: GrpoConfig
    train: TrainConfig
    max_completion_tokens: int
    shared_prefix: bool
    max_drift: float | None = None

    @classmethod
    def of(
        cls, config: Config, shared_prefix: bool, max_drift: float | None = None
    ) -> UpdateSettings:
        """Returns what an update reads of the configuration."""
        length = config.rollout.max_completion_tokens
        return cls(config.grpo, config.train, length, shared_prefix, max_drift)


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
class OldLogprobs:
    """What the first epoch finds of a micro-batch, and later epochs use again: (N, T) each."""

    policy: Tensor
    reference: Tensor | None


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
    groups: list[TokenGroup],
    forward: ForwardPass,
    distribution: SamplingDistribution,
    settings: UpdateSettings,
    workers: Workers = ALONE,
) -> UpdateStats:
    """Makes one optimizer step per epoch on the groups of all workers; each worker brings its own,
    and may have none as long as another has some. Returns the figures of all workers.

    Raises SamplerMismatch and NotFinite before the weights change, in every worker alike. An error
    that one worker has alone, such as a full GPU memory, ends all of them (see `Workers.local`).
    """
    grpo, train = settings.grpo, settings.train
    own_tokens = sum(len(c) for group in groups for c in group.completions)
    own_completions = sum(len(group.completions) for group in groups)
    completions, tokens = map(round, workers.sum([own_completions, own_tokens]))
    totals = StepTotals(completions, tokens, settings.max_completion_tokens)
    batches = list(micro_batches(groups, train.micro_batch_tokens, settings.shared_prefix))
    vision = VisionCache()
    old: list[OldLogprobs] = []
    first = Sums()
    for epoch in range(grpo.epochs):
        sums = Sums()
        optimizer.zero_grad()
        with workers.local():
            for index, batch in enumerate(batches):
                current = forward(policy, batch, distribution, vision)
                if epoch == 0:
                    reference = None
                    if grpo.kl_beta > 0:
                        with torch.no_grad(), policy.disable_adapter():
                            reference = forward(policy, batch, distribution, vision).logprobs
                    old.append(OldLogprobs(current.logprobs.detach(), reference))
                inputs = loss_inputs(batch, current.logprobs, old[index])
                out = compute_loss(inputs, totals, grpo)
                out.loss.backward()
                sums.add(out, inputs, current.entropy)
        sums = sums.over(workers)
        if epoch == 0:
            first = sums
            if settings.max_drift is not None:
                check_mismatch(sums.drift / tokens, sums.drift_max, settings.max_drift)
        grad_norm = clip_gradient(policy, train.max_grad_norm, workers)
        optimizer.step()
    return UpdateStats(
        loss=sums.loss,
        grad_norm=grad_norm,
        drift=first.drift / tokens,
        drift_max=first.drift_max,
        kl=first.kl / tokens if grpo.kl_beta > 0 else None,
        clipped=sums.clipped / tokens,
        entropy=first.entropy / tokens,
    )


def clip_gradient(policy: torch.nn.Module, max_norm: float, workers: Workers = ALONE) -> float:
    """Sums the gradient over the workers and clips it; returns its norm before. Raises
    NotFinite."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    workers.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not norm < EXPLODED:
        raise NotFinite(
            f"the gradient is not finite or has exploded (its norm is {norm:.3g}); the weights "
            "were left as they were. Lower train.learning_rate or train.max_grad_norm in a new "
            "run_dir"
        )
    return float(norm.item())


def micro_batches(
    groups: list[TokenGroup], budget: int, shared: bool
) -> Iterator[list[TokenGroup]]:
    """Cuts the step into parts of at most `budget` tokens. With a `shared` prompt, a part counts it
    once per group.

    Groups stay whole where they fit, since a group that is cut pays for its prompt again. A single
    completion that does not fit goes alone.
    """
    part: list[TokenGroup] = []
    used = 0
    for group in groups:
        for piece, cost in pieces(group, budget, shared):
            if part and used + cost > budget:
                yield part
                part, used = [], 0
            part.append(piece)
            used += cost
    if part:
        yield part


def pieces(group: TokenGroup, budget: int, shared: bool) -> Iterator[tuple[TokenGroup, int]]:
    """Yields the group itself, or as few parts of it as the budget allows, each with its tokens."""
    prompt = len(group.prompt_token_ids)
    once, each = (prompt, 0) if shared else (0, prompt)
    start, used = 0, once
    for index, completion in enumerate(group.completions):
        cost = each + len(completion)
        if index > start and used + cost > budget:
            yield group.part(range(start, index)), used
            start, used = index, once
        used += cost
    yield group.part(range(start, len(group.completions))), used


def loss_inputs(batch: list[TokenGroup], logprobs: Tensor, old: OldLogprobs) -> LossInputs:
    """Returns the batch as padded tensors beside the (N, T) log-probs, on their device."""
    device = logprobs.device
    sampled = [torch.tensor(row) for group in batch for row in group.sampler_logprobs]
    lengths = torch.tensor([len(row) for row in sampled], device=device)
    mask: Tensor = torch.arange(logprobs.shape[1], device=device)[None] < lengths[:, None]
    advantages = torch.from_numpy(np.concatenate([group.advantages for group in batch]))
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=old.policy,
        sampler_logprobs=pad_sequence(sampled, batch_first=True).to(device),
        reference_logprobs=old.reference,
        advantages=advantages.to(device),
        mask=mask,
    )


def measure_mismatch(
    policy: PeftModel, group: TokenGroup, forward: ForwardPass, distribution: SamplingDistribution
) -> tuple[float, int, float]:
    """Returns the sum of |log-prob of the policy - of the sampler| over one group's tokens, the
    number of these tokens, and the largest difference. Sums can be added over workers."""
    with torch.no_grad():
        rows = forward(policy, [group], distribution, VisionCache()).logprobs
    sampled = [torch.tensor(row) for row in group.sampler_logprobs]
    difference = (rows - pad_sequence(sampled, batch_first=True).to(rows.device)).abs()
    return difference.sum().item(), sum(map(len, sampled)), difference.max().item()


def check_mismatch(mean: float, largest: float, bound: float) -> None:
    """Raises NotFinite or SamplerMismatch if a sampler whose log-probs differ so much from the
    policy's cannot be sampling from it."""
    if not math.isfinite(mean):
        raise NotFinite(
            "a log-prob of the policy or of the sampler is not finite; the weights were left as "
            "they were. Look at the model's files, then at train.learning_rate"
        )
    if mean > bound:
        raise SamplerMismatch(
            f"the sampler does not sample from the policy: its log-probs differ by {mean:.2g} on "
            f"average (at most {largest:.2g}), above the bound of {bound:.2g} "
            "(train.max_sampler_mismatch). It holds a stale or another adapter, or another base "
            "model; the weights were not changed"
        )
