"""The train workers beside the leader: they learn from what they are dealt, and do nothing else."""

from __future__ import annotations

from rarl.grpo.forward import ForwardPass, plain_forward
from rarl.grpo.shared_prefix import SharedPrefixForward
from rarl.training.inputs import LoopInputs
from rarl.training.learner import start_learner
from rarl.training.loop import update_with
from rarl.training.sft import imitate
from rarl.training.team import Team


def follow(inputs: LoopInputs, team: Team) -> int:
    """Makes the same updates as the leader, until it dismisses; returns their number."""
    train = inputs.config.train
    learner = start_learner(inputs, team)
    updates = 0
    while (share := team.receive()) is not None:
        for group in learner.optimizer.param_groups:
            group["lr"] = share.learning_rate
        forward: ForwardPass = (
            SharedPrefixForward(train.gradient_checkpointing)
            if share.shared_prefix
            else plain_forward
        )
        with team.joint():
            if inputs.config.method == "sft":
                imitate(
                    learner,
                    share.groups,
                    forward,
                    train.micro_batch_tokens,
                    train.max_grad_norm,
                    team,
                )
            else:
                update_with(inputs, learner, share, forward, team)
        updates += 1
    return updates
