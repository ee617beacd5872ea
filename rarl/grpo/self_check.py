"""Which forward pass to train with: the shared-prefix one, if it agrees with the plain one on this
very model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from rarl.distribution import SamplingDistribution
from rarl.grpo.forward import ForwardPass, plain_forward
from rarl.grpo.group import Group
from rarl.grpo.shared_prefix import SUPPORTED_MODELS, SharedPrefixForward
from rarl.grpo.vision import VisionCache

# Mean |log-prob difference| between two orders of the same arithmetic: about 1e-7 and 5e-3 were
# seen.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """`difference` is None where nothing was compared."""

    forward: ForwardPass
    shared: bool
    difference: float | None


def choose_forward(
    policy: PeftModel, group: Group, distribution: SamplingDistribution, fast: SharedPrefixForward
) -> Chosen:
    """`fast` when it gives the plain pass's log-probs on `group`; else the plain pass, with an
    error logged."""
    model: Any = policy.get_base_model()
    if model.config.model_type not in SUPPORTED_MODELS:
        log.warning(
            "no shared-prefix pass for model type '%s': training with the plain one",
            model.config.model_type,
        )
        return Chosen(plain_forward, False, None)
    with torch.no_grad():
        expected = plain_forward(policy, [group], distribution, VisionCache()).logprobs
        found = fast(policy, [group], distribution, VisionCache()).logprobs
    tokens = sum(len(completion) for completion in group.completions)
    difference = ((expected - found).abs().sum() / tokens).item()
    if difference <= TOLERANCE[model.dtype]:
        return Chosen(fast, True, difference)
    log.error(
        "the shared-prefix pass differs from the plain one by %.2g per token (tolerance %.2g): training goes on with "
        "the plain pass, several times slower. Please report this with the model and the version of transformers",
        difference,
        TOLERANCE[model.dtype],
    )
    return Chosen(plain_forward, False, difference)
