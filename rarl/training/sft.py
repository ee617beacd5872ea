"""Supervised fine-tuning of the same adapter on the same data: the baseline, and a warm-up before
reinforcement.

The target is what the prompt asks for: the answer alone, or the rationale as thinking and then the
answer. The loss is the mean negative log-likelihood of the target's tokens, the end of the turn
included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AutoProcessor

from rarl.data.prepared import PreparedExample, require_room
from rarl.errors import UserError
from rarl.grpo.forward import ForwardPass
from rarl.grpo.group import Group, SamplingDistribution
from rarl.grpo.self_check import Chosen
from rarl.grpo.update import clip_gradient
from rarl.grpo.vision import VisionCache
from rarl.grpo.workers import ALONE, Workers
from rarl.replies.tags import target_text
from rarl.training.checkpoint import publish_final_adapter, saving_failures
from rarl.training.inputs import LoopInputs
from rarl.training.learner import keep_progress, self_check, start_learner
from rarl.training.log import MetricsLog, Stopwatch
from rarl.training.rollouts import data_batches
from rarl.training.state import Learner, Progress
from rarl.training.team import Share, Team

MODEL_SOFTMAX = SamplingDistribution(temperature=1.0, banned_token_ids=[])


@dataclass(frozen=True)
class ImitationStats:
    """`loss` in nats per target token, before the step."""

    loss: float
    grad_norm: float
    tokens: int


def train_sft(inputs: LoopInputs, team: Team) -> int:
    """Makes the steps that are not yet made; returns the last one's number."""
    config = inputs.config
    learner = start_learner(inputs, team)
    first = learner.progress.step
    tokenizer = AutoProcessor.from_pretrained(inputs.model_path).tokenizer
    batches = data_batches(config.train.prompts_per_step, first=first)
    chosen: Chosen | None = None
    with MetricsLog(inputs.run_dir, config, first_step=first + 1) as metrics:
        clock = Stopwatch()
        for step in range(first + 1, config.train.steps + 1):
            with clock.phase("data"):
                _, prompts = next(batches)
                groups = target_groups(prompts, tokenizer, config.rollout.max_model_length)
            with clock.phase("update"):
                chosen = chosen or self_check(inputs, learner.policy, groups[0], MODEL_SOFTMAX)
                stats = imitate_together(inputs, learner, groups, chosen, team, step)
                learning_rate = learner.step_scheduler()
            row = {
                "step": step,
                "loss": stats.loss,
                "grad_norm": stats.grad_norm,
                "completion_tokens": stats.tokens / len(groups),
                "completion_tokens/total": float(stats.tokens),
                "shared_prefix": float(chosen.shared),
                "learning_rate": learning_rate,
                **clock.lap(),
            }
            metrics.write(row)
            with clock.phase("save"):
                loss = metrics.recent("loss")
                stop = keep_progress(
                    inputs, learner, Progress(step, step), None if loss is None else -loss
                )
            if stop:
                return step
    publish_final_adapter(learner.policy, inputs.run_dir.adapter)
    return config.train.steps


def target_groups(
    prompts: list[PreparedExample], tokenizer: Any, max_model_length: int
) -> list[Group]:
    """Each prompt with its one target."""
    groups = []
    for key, prepared in enumerate(prompts):
        ids = [*tokenizer(target_reply(prepared)).input_ids, tokenizer.eos_token_id]
        require_room(prepared, len(ids), max_model_length)
        groups.append(Group(prepared.prompt_token_ids, prepared.patches, prepared.grid, [ids], key))
    return groups


def target_reply(prepared: PreparedExample) -> str:
    """Raises UserError where the prompt asks for thinking and the example has no rationale to
    imitate."""
    example, form = prepared.example, prepared.prompt.form
    if form != "answer" and not (example.rationale or "").strip():
        raise UserError(
            f"example '{example.id}' has no rationale, but its prompt ({prepared.prompt.wording}) asks for thinking: "
            "give it one, or train on answers alone with prompts.train={none: 1} and prompts.eval=none"
        )
    return target_text(form, example.rationale or "", example.answer)


def imitate_together(
    inputs: LoopInputs, learner: Learner, groups: list[Group], chosen: Chosen, team: Team, step: int
) -> ImitationStats:
    """The leader's part of a step that all workers make. Raises UserError, with the batch saved,
    when it gives no number."""
    train = inputs.config.train
    rate = learner.scheduler.get_last_lr()[0]
    share = team.deal(Share(groups, chosen.shared, True, rate))
    with saving_failures(inputs.run_dir.failures, step, groups), team.joint():
        return imitate(
            learner,
            share.groups,
            chosen.forward,
            train.micro_batch_tokens,
            train.max_grad_norm,
            team,
        )


def imitate(
    learner: Learner,
    groups: list[Group],
    forward: ForwardPass,
    micro_batch_tokens: int,
    max_grad_norm: float,
    workers: Workers = ALONE,
) -> ImitationStats:
    """One optimizer step on the mean over the target tokens of all workers. Raises NotFinite."""
    tokens = round(workers.sum([sum(len(group.completions[0]) for group in groups)])[0])
    learner.optimizer.zero_grad()
    total = 0.0
    for part in packed(groups, micro_batch_tokens):
        logprobs: Tensor = forward(learner.policy, part, MODEL_SOFTMAX, VisionCache()).logprobs
        loss = -logprobs.sum() / tokens  # the padding has log-prob 0
        loss.backward()
        total += loss.item()
    total = workers.sum([total])[0]
    grad_norm = clip_gradient(learner.policy, max_grad_norm, workers)
    learner.optimizer.step()
    return ImitationStats(total, grad_norm, tokens)


def packed(groups: list[Group], budget: int) -> Iterator[list[Group]]:
    """Cuts the batch into parts of at most `budget` tokens; a sequence that is longer goes
    alone."""
    part: list[Group] = []
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
