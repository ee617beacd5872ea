"""The one way to ask: prompts go in, sampled, judged and scored groups come out.

Training, evaluation, probing and explaining all ask here. A batch is asked for in two halves, so
that other work can be done between them: `submit` starts the sampling, and each group is given to
the judge as soon as it is sampled; `result` waits for what is missing and scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rarl.config import RewardConfig
from rarl.data.parquet import ImageKey
from rarl.data.prepared import require_room
from rarl.errors import UserError
from rarl.judge.candidate import candidate_of, judged_image
from rarl.judge.judge import Judge
from rarl.look import Looker
from rarl.prompts import without_images
from rarl.reading import Reader, Reading
from rarl.rewards import Reward
from rarl.rewards.total import score_groups
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SampleRequest, SamplingSettings
from rarl.samples import Group, Sample, flatten
from rarl.schema import Example, PreparedExample, Rollout, Verdict


@dataclass(frozen=True)
class Collector:
    """Who is asked: the samplers, the judge (None: nobody judges), and the rewards with their
    settings. `max_model_length` bounds prompt and completion together, in tokens. `siblings` are
    the training questions by image, for `explains`. `looker` asks again after a look (None: looks
    are not followed)."""

    pool: SamplerPool
    rewards: Mapping[str, Reward]
    settings: Mapping[str, RewardConfig]
    judge: Judge | None
    model_path: str
    max_model_length: int
    siblings: Mapping[ImageKey, Sequence[Example]] = field(default_factory=dict)
    looker: Looker | None = None

    @classmethod
    def unscored(cls, pool: SamplerPool, model_path: str, max_model_length: int) -> Collector:
        """Returns one that asks alone: no judge, no rewards."""
        return cls(pool, {}, {}, None, model_path, max_model_length)

    def submit(
        self,
        prompts: Sequence[PreparedExample],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        use_adapter: bool = True,
        show_image: bool = True,
        on_group: Callable[[], Any] = lambda: None,
    ) -> PendingGroups:
        """Starts a batch. Completion g of prompt i is drawn with the seed `seeds[i]` + g, from the
        adapter that the samplers hold now, or from the base model. `on_group` is called, from
        another thread, each time a group has been sampled.

        Raises UserError if a prompt and its completion do not fit `max_model_length`.
        """
        for prepared in prompts:
            require_room(prepared, sampling.max_tokens, self.max_model_length)
        return PendingGroups(self, prompts, seeds, sampling, use_adapter, show_image, on_group)

    def collect(
        self, prompts: Sequence[PreparedExample], seeds: Sequence[int], sampling: SamplingSettings
    ) -> list[Group]:
        """Asks with the adapter and waits: one scored group for each prompt, in order."""
        return self.submit(prompts, seeds, sampling).result()

    @cached_property
    def reader(self) -> Reader:
        """Reads thinkings without the image, where a reward asks for that, and follows looks."""
        room = self.max_model_length
        return Reader(self.pool, self.settings, self.model_path, room, self.siblings, self.looker)


class PendingGroups:
    """A batch in flight."""

    def __init__(
        self,
        collector: Collector,
        prompts: Sequence[PreparedExample],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        use_adapter: bool,
        show_image: bool,
        on_group: Callable[[], Any],
    ) -> None:
        self.collector, self.prompts = collector, prompts
        self.use_adapter, self.show_image, self.on_group = use_adapter, show_image, on_group
        self.verdicts: list[list[Future[Verdict]]] = [[] for _ in prompts]
        self.seconds = [0.0] * len(prompts)
        self.groups: list[Group] | None = None
        self.readings: list[Reading] = []
        requests = [
            SampleRequest(prepared.prompt.text, prepared.pixels, seed)
            if show_image
            else SampleRequest(without_images(prepared.prompt.text), (), seed)
            for prepared, seed in zip(prompts, seeds, strict=True)
        ]
        self.started = time.monotonic()
        self.pending = collector.pool.submit(requests, sampling, use_adapter, self.take_in)

    def take_in(self, index: int, rollouts: list[Rollout]) -> None:
        """Sends a group to the judge; called from another thread, as soon as it is sampled."""
        self.seconds[index] = time.monotonic() - self.started
        judge, prepared = self.collector.judge, self.prompts[index]
        # A look is no answer that could be judged.
        if judge is not None and prepared.prompt.form != "look":
            image = judged_image(prepared.pixels) if judge.sees else None
            example, prompt = prepared.example, prepared.prompt
            self.verdicts[index] = judge.submit(
                [candidate_of(example, prompt, one.text, image) for one in rollouts]
            )
        self.on_group()

    def wait(self) -> None:
        """Returns when the samplers are done with this batch, well or not, so that their adapter
        can be replaced."""
        self.pending.wait()

    def parts(self, size: int) -> Iterator[PendingGroups]:
        """Yields the batch in parts of up to `size` prompts, each as soon as it is sampled."""
        for start in range(0, len(self.prompts), size):
            part = copy(self)
            part.prompts = self.prompts[start : start + size]
            part.pending = self.pending.part(start, start + len(part.prompts))
            part.verdicts = self.verdicts[start : start + size]
            part.seconds = self.seconds[start : start + size]
            yield part

    def sampled(self) -> list[Group]:
        """Waits for the completions and starts what follows from them with the same adapter. Raises
        UserError if the engines fail, or read a prompt otherwise than the trainer."""
        if self.groups is None:
            rollouts = self.pending.result()
            if self.show_image:
                require_equal_prompts(self.prompts, rollouts)
            self.groups = [
                [
                    Sample(
                        example=prepared.example,
                        prompt=prepared.prompt,
                        rollout=rollout,
                        number=number,
                        detail=prepared.detail,
                        seconds=self.seconds[index],
                        prepared=prepared,
                    )
                    for number, rollout in enumerate(group)
                ]
                for index, (prepared, group) in enumerate(zip(self.prompts, rollouts, strict=True))
            ]
            samples = flatten(self.groups)
            self.readings = self.collector.reader.start(samples, self.use_adapter)
        return self.groups

    def result(self) -> list[Group]:
        """Waits for everything and scores. Raises UserError also if the judge is lost and
        `judge.on_unreachable` is "stop"."""
        groups = self.sampled()
        for reading in self.readings:
            reading.write()
        for group, futures in zip(groups, self.verdicts, strict=True):
            for sample, future in zip(group, futures, strict=False):
                sample.verdict = future.result()
        score_groups(groups, self.collector.rewards, self.collector.settings)
        return groups


def require_equal_prompts(
    prompts: Sequence[PreparedExample], rollouts: Sequence[Sequence[Rollout]]
) -> None:
    """Raises UserError if sampler and trainer tokenise a prompt differently."""
    for prepared, group in zip(prompts, rollouts, strict=True):
        if group[0].prompt_token_ids != prepared.prompt_token_ids.tolist():
            raise UserError(
                f"example '{prepared.example.id}': sampler and trainer disagree on the prompt's "
                f"tokens ({len(group[0].prompt_token_ids)} and {len(prepared.prompt_token_ids)}); "
                "the model and its processor do not fit together"
            )
