"""The GRPO loop, run by a Ray Train worker. It reads top to bottom:

    take a batch from the Ray Data shard → ask the vLLM actors for rollouts → score → update → publish the adapter.

With `max_staleness` 0 a step's rollouts come from the adapter that the step before it published.
With 1 the next batch is sampled while this one trains, by the adapter of the step before. Either
way the sampler's log-probs are compared in every step with those of the policy that it should hold,
and the run stops when they part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from peft import PeftModel

from rarl.config import Config
from rarl.data.prepared import PreparedExample
from rarl.grpo.advantages import group_advantages
from rarl.grpo.forward import ForwardPass
from rarl.grpo.group import Group, SamplingDistribution
from rarl.grpo.policy import adapter_arrays, adapter_config, other_adapter
from rarl.grpo.self_check import Chosen
from rarl.grpo.update import (
    SamplerMismatch,
    ScoredGroup,
    UpdateStats,
    check_mismatch,
    measure_mismatch,
    update_policy,
)
from rarl.rewards.total import ScoredReply
from rarl.rollout.pool import SamplerPool
from rarl.schema import Rollout, Score
from rarl.training.checkpoint import publish_final_adapter, saving_failures
from rarl.training.inputs import LoopInputs
from rarl.training.learner import keep_progress, self_check, start_learner
from rarl.training.log import MetricsLog, Stopwatch
from rarl.training.rollouts import RolloutStream, SampledBatch
from rarl.training.samples import write_samples
from rarl.training.scorer import Scorer
from rarl.training.settings import resolve_loss, update_settings
from rarl.training.state import Learner, Progress
from rarl.training.step_metrics import (
    has_spread,
    judge_metrics,
    reward_metrics,
    rollout_metrics,
    update_metrics,
)
from rarl.training.team import Share, Team


@dataclass(frozen=True)
class Drawn:
    """The groups that a step sampled, how each completion was scored, and which groups it trains
    on."""

    prompts: list[PreparedExample]
    groups: list[list[Rollout]]
    replies: list[list[ScoredReply]]
    scores: list[list[Score]]
    trained: list[int]

    def with_batch(
        self, batch: SampledBatch, replies: Any, scores: Any, trained: list[int]
    ) -> Drawn:
        """With one more batch, of which `trained` are the useful groups' places in the whole."""
        prompts, groups = self.prompts + batch.prompts, self.groups + batch.groups
        return Drawn(
            prompts, groups, self.replies + replies, self.scores + scores, self.trained + trained
        )


def train_grpo(inputs: LoopInputs, team: Team) -> int:
    """Makes the steps that are not yet made; returns the last one's number."""
    config = inputs.config
    learner = start_learner(inputs, team)
    progress = learner.progress
    adapter = Published(inputs.pool, learner.policy, progress.step)
    scorer = Scorer.open(inputs)  # its judge ends with this process
    stream = RolloutStream(config, inputs.pool, taken=progress.batches, on_group=scorer.ask_judge)
    chosen: Chosen | None = None

    with MetricsLog(inputs.run_dir, config, first_step=progress.step + 1) as metrics:
        clock = Stopwatch()
        for step in range(progress.step + 1, config.train.steps + 1):
            drawn = draw(config, scorer, stream, clock, overlap=step < config.train.steps)
            with clock.phase("update"):
                advantages = step_advantages(config, drawn)
                scored = scored_groups(config, drawn, advantages)
                if chosen is None and scored:
                    chosen = self_check(
                        inputs, learner.policy, scored[0].group, distribution_of(inputs)
                    )
                mismatch = adapter.check_stale(inputs, drawn, scored, chosen)
                stats = update(inputs, learner, scored, chosen, mismatch is None, team, step)
                learning_rate = learner.step_scheduler()
            stream.settle(clock)
            with clock.phase("publish"):
                published = adapter.publish(step)
            save_samples(inputs.run_dir.samples, step, drawn, advantages)
            row = {
                "step": step,
                **reward_metrics(drawn.scores),
                **judge_metrics([reply.verdict for group in drawn.replies for reply in group]),
                **rollout_metrics(drawn.groups, len(drawn.trained), version=step - 1),
                **update_metrics(stats, mismatch),
                "shared_prefix": float(chosen.shared) if chosen else None,
                "learning_rate": learning_rate,
                "published_bytes": published,
                **clock.lap(),
            }
            metrics.write(row)
            with clock.phase("save"):
                stop = keep_progress(
                    inputs, learner, Progress(step, stream.taken), metrics.recent("reward/mean")
                )
            if stop:
                scorer.close()
                return step
    publish_final_adapter(learner.policy, inputs.run_dir.adapter)
    scorer.close()
    return config.train.steps


def draw(
    config: Config, scorer: Scorer, stream: RolloutStream, clock: Stopwatch, overlap: bool
) -> Drawn:
    """Samples and scores the groups of one step: one batch, or as many as it takes, within bounds,
    to have `prompts_per_step` groups with spread (dynamic sampling, DAPO, arXiv 2503.14476, section
    3.2)."""
    wanted, refills = config.train.prompts_per_step, config.grpo.max_refills
    drawn = Drawn([], [], [], [], [])
    for _ in range(1 + refills):
        batch = stream.take(clock)
        with clock.phase("reward"):
            rederived = scorer.rederive(batch)
        if overlap and config.rollout.max_staleness > 0:
            stream.prefetch(clock)
        with clock.phase("reward"):
            replies = scorer.gather(batch, rederived)
            scores = scorer.score(replies)
        useful = [
            len(drawn.groups) + i
            for i, group in enumerate(scores)
            if refills == 0 or has_spread(group)
        ]
        drawn = drawn.with_batch(batch, replies, scores, useful[: wanted - len(drawn.trained)])
        if len(drawn.trained) == wanted:
            break
    return drawn


def step_advantages(config: Config, drawn: Drawn) -> NDArray[Any]:
    """(groups, G) of all groups, the ones that are not trained on included."""
    rewards = [[score.total for score in group] for group in drawn.scores]
    return group_advantages(rewards, resolve_loss(config.grpo).scale_advantages)


def scored_groups(config: Config, drawn: Drawn, advantages: NDArray[Any]) -> list[ScoredGroup]:
    """What the update is given: the groups to train on, without cut-off completions where the loss
    leaves them out."""
    drop = resolve_loss(config.grpo).drop_truncated
    result = []
    for index in drawn.trained:
        prompt, rollouts = drawn.prompts[index], drawn.groups[index]
        rows = [
            i
            for i, rollout in enumerate(rollouts)
            if not (drop and rollout.finish_reason == "length")
        ]
        if rows:
            completions = [rollouts[i].completion_token_ids for i in rows]
            group = Group(
                prompt.prompt_token_ids, prompt.patches, prompt.grid, completions, key=index
            )
            sampled = [rollouts[i].sampler_logprobs for i in rows]
            result.append(ScoredGroup(group, sampled, advantages[index, rows]))
    return result


def distribution_of(inputs: LoopInputs) -> SamplingDistribution:
    return SamplingDistribution(inputs.config.rollout.temperature, inputs.banned_token_ids)


def update(
    inputs: LoopInputs,
    learner: Learner,
    groups: list[ScoredGroup],
    chosen: Chosen | None,
    on_policy: bool,
    team: Team,
    step: int,
) -> UpdateStats | None:
    """The update that all workers make, from the leader's side. None, and the weights as they were,
    where no group is left to learn from."""
    if chosen is None or not groups:
        return None
    share = team.deal(Share(groups, chosen.shared, on_policy, learner.scheduler.get_last_lr()[0]))
    with saving_failures(inputs.run_dir.failures, step, groups), team.joint():
        return update_with(inputs, learner, share, chosen.forward, team)


def update_with(
    inputs: LoopInputs, learner: Learner, share: Share, forward: ForwardPass, team: Team
) -> UpdateStats:
    """What every worker does with its share of the step's groups."""
    settings = update_settings(inputs.config, share.shared_prefix)
    if share.on_policy:
        settings = replace(settings, max_drift=inputs.mismatch_bound)
    distribution = distribution_of(inputs)
    return update_policy(
        learner.policy, learner.optimizer, share.groups, forward, distribution, settings, team
    )


class Published:
    """The adapter that the samplers hold, and the one before it, to check answers that are one
    update old."""

    def __init__(self, pool: SamplerPool, policy: PeftModel, version: int) -> None:
        self.pool, self.policy = pool, policy
        self.versions: dict[int, dict[str, NDArray[Any]]] = {}
        self.publish(version)

    def publish(self, version: int) -> int:
        """Loads the current adapter into every sampler; returns its bytes."""
        arrays = adapter_arrays(self.policy)
        self.versions = {v: kept for v, kept in self.versions.items() if v == version - 1} | {
            version: arrays
        }
        return self.pool.publish(version, arrays, adapter_config(self.policy))

    def check_stale(
        self, inputs: LoopInputs, drawn: Drawn, groups: list[ScoredGroup], chosen: Chosen | None
    ) -> tuple[float, float] | None:
        """For a batch that an older adapter sampled: mean and largest log-prob difference of one
        group from that very adapter, put back for the moment. None for a batch of the current one,
        which the update checks as a whole.

        Raises SamplerMismatch.
        """
        if chosen is None or not groups:
            return None
        version, current = (
            min(drawn.groups[g.group.key][0].adapter_version for g in groups),
            max(self.versions),
        )
        if version == current:
            return None
        allowed = inputs.config.rollout.max_staleness
        if current - version > allowed:
            raise SamplerMismatch(
                f"the sampler does not sample from the policy: its adapter is stale, of step {version} where the "
                f"policy is of step {current} and rollout.max_staleness is {allowed}; the weights were not changed"
            )
        oldest = next(g for g in groups if drawn.groups[g.group.key][0].adapter_version == version)
        with other_adapter(self.policy, self.versions[version]):
            mean, largest = measure_mismatch(
                self.policy, oldest, chosen.forward, distribution_of(inputs)
            )
        check_mismatch(mean, largest, inputs.mismatch_bound)
        return mean, largest


def save_samples(folder: Path, step: int, drawn: Drawn, advantages: NDArray[Any]) -> None:
    replies = [reply for group in drawn.replies for reply in group]
    rollouts = [rollout for group in drawn.groups for rollout in group]
    scores = [score for group in drawn.scores for score in group]
    write_samples(folder, step, replies, rollouts, scores, advantages.ravel().tolist())
