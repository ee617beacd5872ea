"""From the configuration to what the update is told: what is not set comes from the loss's own
paper."""

from __future__ import annotations

from dataclasses import replace

from rarl.config import Config, GrpoConfig
from rarl.grpo.loss import LOSSES, Loss, LossSettings
from rarl.grpo.update import UpdateSettings


def resolve_loss(config: GrpoConfig) -> Loss:
    """The configured loss with its paper's settings, where the configuration has no other."""
    kind = LOSSES[config.loss]
    low = config.clip or kind.clip[0]
    high = config.clip_high or config.clip or kind.clip[1]
    scale = kind.scale_advantages if config.scale_advantages is None else config.scale_advantages
    drop = kind.drop_truncated if config.drop_truncated is None else config.drop_truncated
    return replace(kind, clip=(low, high), scale_advantages=scale, drop_truncated=drop)


def update_settings(config: Config, shared_prefix: bool) -> UpdateSettings:
    """Without a bound on the drift, which depends on the batch."""
    grpo, train = config.grpo, config.train
    clip = resolve_loss(grpo).clip
    return UpdateSettings(
        loss=LossSettings(grpo.loss, clip, grpo.kl_beta, grpo.importance, grpo.importance_cap),
        epochs=grpo.epochs,
        max_grad_norm=train.max_grad_norm,
        micro_batch_tokens=train.micro_batch_tokens,
        shared_prefix=shared_prefix,
        max_completion_tokens=config.rollout.max_completion_tokens,
        max_drift=None,
    )
