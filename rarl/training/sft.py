"""Supervised fine-tuning of the same adapter on the same data: the baseline, and a warm-up before
reinforcement learning.

The target is what the prompt asks for: the answer alone, or the rationale as thinking and then the
answer. An example without a rationale is asked for the answer alone. The loss is the mean negative
log-likelihood of the target's tokens, the end of the turn included. Workers are equal, as in
`grpo.py`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import AutoProcessor

from rarl.data.prepared import require_room
from rarl.grpo.group import TokenGroup
from rarl.grpo.update import imitate
from rarl.grpo.workers import ALONE, Workers
from rarl.prompts import target_reply
from rarl.replies.tags import asks_thinking
from rarl.schema import PreparedExample
from rarl.training.grpo import Batches
from rarl.training.inputs import LoopOutcome, Progress, TrainInputs
from rarl.training.learner import Learner, saving_failures
from rarl.training.log import MetricsLog, Stopwatch


def train_sft(
    inputs: TrainInputs, learner: Learner, batches: Batches, workers: Workers = ALONE
) -> LoopOutcome:
    """Makes the steps that are not yet made. Raises UserError."""
    config, train = inputs.config, inputs.config.train
    first = learner.progress.step
    with ExitStack() as stack:
        with workers.local():
            tokenizer = AutoProcessor.from_pretrained(inputs.model_path).tokenizer
            metrics = MetricsLog(inputs.run_dir, config, first + 1, workers.rank == 0)
            log = stack.enter_context(metrics)
        clock = Stopwatch()
        for step in range(first + 1, train.steps + 1):
            with clock.phase("data"), workers.local():
                _, prompts = next(batches)
                groups = target_groups(prompts, tokenizer, config.rollout.max_model_length)
            with clock.phase("update"):
                with workers.local():
                    forward = learner.forward_for(inputs, groups)
                with saving_failures(inputs.run_dir.failures, step, groups, workers.rank):
                    stats = imitate(
                        learner.policy,
                        learner.optimizer,
                        groups,
                        forward.forward,
                        train.micro_batch_tokens,
                        train.max_grad_norm,
                        workers,
                    )
                learning_rate = learner.step_scheduler()
                movement = learner.movement.median()
            thinking = sum(asks_thinking(one.prompt.form) for one in prompts)
            completions, rationales = workers.sum([len(groups), thinking])
            row = {
                "step": step,
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "completion_tokens": stats.tokens / completions,
                "completion_tokens/total": float(stats.tokens),
                "with_rationale": rationales / completions,
                "shared_prefix": learner.uses_shared_prefix,
                "learning_rate": learning_rate,
                "adapter/movement": movement,
                **clock.lap(),
            }
            with workers.local():
                log.write(row)
            with clock.phase("save"):
                loss = log.recent("loss")
                score = None if loss is None else -loss
                if learner.save(inputs, Progress(step, step), score, workers):
                    return LoopOutcome(step)
    learner.finish(inputs, workers)
    return LoopOutcome(train.steps)


def target_groups(
    prompts: list[PreparedExample], tokenizer: Any, max_model_length: int
) -> list[TokenGroup]:
    """Returns each prompt with its one target as the completion."""
    groups = []
    for key, prepared in enumerate(prompts):
        prompt = prepared.prompt
        target = target_reply(prepared.example, prompt.form, prompt.frame)
        ids = [*tokenizer(target).input_ids, tokenizer.eos_token_id]
        require_room(prepared, len(ids), max_model_length)
        shown = (prepared.prompt_token_ids, prepared.pixels, prepared.patch_rule)
        groups.append(TokenGroup(*shown, [ids], key))
    return groups
