"""A model of ours as the teacher, on engines of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rarl.collect import Collector
from rarl.data.images import BadImage
from rarl.data.prepared import prepare_example
from rarl.prompts import PromptPlan
from rarl.rationales.teacher import (
    TEMPERATURE,
    WORDING,
    Asking,
    Said,
    SaidCache,
    Teacher,
    without_images,
)
from rarl.replies.tags import parse_reply
from rarl.rollout.sampler import SamplingSettings
from rarl.schema import Example, PreparedExample, Prompt

AT_ONCE = 32  # questions that the engines are given at a time


@dataclass(frozen=True)
class HintedPrompt:
    """A question as `plan` asks it in a measurement, with the answer given away after it."""

    plan: PromptPlan

    def __call__(self, processor: Any, example: Example, step: int | None = None) -> Prompt:
        hint = WORDING["own_hint"].format(answer=example.answer)
        return self.plan(processor, replace(example, question=f"{example.question}\n{hint}"))


class OwnTeacher(Teacher):
    """Asks engines that are up. `weights` names the model and the adapter that they hold, for the
    cache; `plan` asks for thinking; `max_pixels` is the area of the largest image."""

    def __init__(
        self,
        weights: tuple[str, ...],
        name: str,
        collector: Collector,
        processor: Any,
        plan: PromptPlan,
        cache: SaidCache,
        max_tokens: int,
        max_pixels: int | None,
        adapter: bool,
    ) -> None:
        self.sampling = SamplingSettings(1, TEMPERATURE, max_tokens)
        (family,), number = plan.weights, 0
        asked = [plan.families[family].model_dump(), number, WORDING["own_hint"], max_pixels]
        words = hashlib.sha256(json.dumps([*asked, max_tokens, TEMPERATURE]).encode()).hexdigest()
        self.identity = (words[:12], "self", *weights)
        self.name = self.source = name
        self.form = plan.families[family].form
        self.collector, self.processor, self.plan = collector, processor, plan
        self.cache, self.max_pixels, self.adapter = cache, max_pixels, adapter

    def ask(self, questions: Iterable[Asking]) -> Iterator[tuple[Asking, Said]]:
        waiting = iter(questions)
        while some := list(islice(waiting, AT_ONCE)):
            ready: list[tuple[Asking, PreparedExample]] = []
            for one in some:
                try:
                    ready.append((without_images(one), self.prepared(one)))
                except BadImage as error:
                    yield without_images(one), Said("bad image", str(error))
            # The same question is drawn alike whatever it is asked beside.
            seeds = [int(one.key[:7], 16) for one, _ in ready]
            asked = [prepared for _, prepared in ready]
            pending = self.collector.submit(asked, seeds, self.sampling, use_adapter=self.adapter)
            for (one, _), (sample,) in zip(ready, pending.result(), strict=True):
                rollout = sample.rollout
                tokens = len(rollout.prompt_token_ids), len(rollout.completion_token_ids)
                cut = rollout.finish_reason == "length"
                said = Said("cut off" if cut else "said", rollout.text, tokens)
                self.cache.put(one.key, said)
                yield one, said

    def prepared(self, question: Asking) -> PreparedExample:
        """Returns what the model is shown. Raises BadImage."""
        example = question.example
        prompt = HintedPrompt(self.plan) if question.hinted else self.plan
        return prepare_example(example, self.processor, prompt, self.max_pixels)

    def parts(self, text: str) -> tuple[str | None, str | None]:
        reply = parse_reply(text, self.form)
        return (reply.thinking, reply.answer) if reply.well_formed else (None, None)
