"""Scores a batch of rollouts: gathers what the rewards need beside the replies, then asks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from transformers import AutoProcessor

from rarl.config import Config
from rarl.data.prepared import PreparedExample
from rarl.judge.candidate import candidate_of
from rarl.judge.client import open_judge
from rarl.judge.judge import Judge
from rarl.rewards.registry import Reward, find_rewards
from rarl.rewards.total import ScoredReply, score_groups
from rarl.rollout.pool import SamplerPool
from rarl.schema import Rollout, Score, Verdict
from rarl.training.inputs import LoopInputs
from rarl.training.rederive import PendingRederivation, rederive
from rarl.training.rollouts import SampledBatch


@dataclass(frozen=True)
class Scorer:
    """`judge` and `processor` are None where no reward needs them."""

    config: Config
    rewards: Mapping[str, Reward]
    pool: SamplerPool
    judge: Judge | None
    processor: Any

    @classmethod
    def open(cls, inputs: LoopInputs) -> Scorer:
        config = inputs.config
        judge = (
            open_judge(config.judge, inputs.run_dir.judge_cache)
            if "judge" in config.rewards
            else None
        )
        needs_processor = "consistency" in config.rewards
        processor = AutoProcessor.from_pretrained(inputs.model_path) if needs_processor else None
        return cls(config, find_rewards(config.rewards), inputs.pool, judge, processor)

    def ask_judge(
        self, prepared: PreparedExample, rollouts: Sequence[Rollout]
    ) -> list[Future[Verdict]] | None:
        """Called with each group as soon as it is sampled; returns at once."""
        if self.judge is None:
            return None
        return self.judge.submit(
            [candidate_of(prepared.example, prepared.prompt, one.text) for one in rollouts]
        )

    def rederive(self, batch: SampledBatch) -> PendingRederivation | None:
        """Starts the check of `consistency`, with the adapter that is loaded now."""
        if self.processor is None:
            return None
        return rederive(
            self.pool,
            self.processor,
            batch.prompts,
            batch.groups,
            self.config.rollout.max_model_length,
        )

    def gather(
        self, batch: SampledBatch, rederived: PendingRederivation | None
    ) -> list[list[ScoredReply]]:
        """Waits for what is still missing. Raises UserError when the judge is lost and
        `judge.on_unreachable` is "stop"."""
        answers = rederived.result() if rederived else {}
        groups = []
        for index, (prepared, rollouts) in enumerate(zip(batch.prompts, batch.groups, strict=True)):
            futures = batch.verdicts[index]
            verdicts = (
                [future.result() for future in futures] if futures else [None] * len(rollouts)
            )
            groups.append(
                [
                    ScoredReply(
                        prepared.example,
                        prepared.prompt,
                        rollout.text,
                        answers.get((index, number)),
                        verdict,
                    )
                    for number, (rollout, verdict) in enumerate(
                        zip(rollouts, verdicts, strict=True)
                    )
                ]
            )
        return groups

    def score(self, replies: list[list[ScoredReply]]) -> list[list[Score]]:
        return score_groups(replies, self.rewards, self.config.rewards)

    def close(self) -> None:
        if self.judge is not None:
            self.judge.close()
