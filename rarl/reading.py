"""What follows from a reply, for the rewards that ask for that. A thinking is read without the
image; a look is followed by the question.

`consistency` asks the policy for the answer that its own thinking leads to. `explains` asks the
base model, which can learn no code, how surely the thinking leads to the reference answer, and to
those of other training questions about the same image. `fluency` asks the base model how likely the
thinking itself is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rarl.config import RewardConfig
from rarl.data.parquet import ImageKey, image_key
from rarl.look import Looker
from rarl.prompts import as_turn, rederive_text, without_images
from rarl.replies.grading import is_yes_no
from rarl.replies.tricks import without_answers
from rarl.replies.words import same_words
from rarl.rewards.thinking import SIBLINGS
from rarl.rollout.pool import PendingRollouts, PendingScores, SamplerPool
from rarl.rollout.sampler import LikelihoodRequest, SampleRequest, SamplingSettings
from rarl.samples import Sample
from rarl.schema import Answered, Detail, Example, Explained, PreparedExample, ReplyForm

REDERIVED_TOKENS = 64  # enough for an answer; a longer one is cut and will not agree
GREEDY_ANSWER = SamplingSettings(group_size=1, temperature=0.0, max_tokens=REDERIVED_TOKENS)
# The reply is read from here on. Cut within the tag: a tokenizer joins ">" with what follows.
OPENING, CLOSING = "<answer", "</answer>"
THINKING = "<think"
# Digits of a probability that are kept. Below, engines differ with what else they are asked.
DIGITS = 4
MAX_REPLIES = 20  # that compete; vLLM tells the log-probs of no more


@dataclass(frozen=True)
class Reader:
    """Who reads, for which rewards. `max_model_length` bounds what is shown and the answer, in
    tokens. `siblings` are the training questions by image, `looker` asks after a look."""

    pool: SamplerPool
    rewards: Mapping[str, RewardConfig]
    model_path: str
    max_model_length: int
    siblings: Mapping[ImageKey, Sequence[Example]] = field(default_factory=dict)
    looker: Looker | None = None

    def start(self, samples: Sequence[Sample], use_adapter: bool) -> list[Reading]:
        """Does not wait. The policy reads as the samplers hold it now."""
        readings: list[Reading] = []
        if "consistency" in self.rewards:
            readings.append(self.rederive(samples, use_adapter))
        if "explains" in self.rewards:
            readings.append(self.explain(samples))
        if "fluency" in self.rewards:
            readings.append(
                read_language(self.pool, [one for one in samples if one.reply.thinking])
            )
        looks = [one for one in samples if one.prompt.form == "look"]
        if self.looker is not None and looks:
            readings.append(follow_looks(self.pool, self.looker, looks, use_adapter))
        return readings

    def rederive(self, samples: Sequence[Sample], use_adapter: bool) -> Rederived:
        """Asks greedily for the answer that each thinking leads to."""
        thought = [(one, one.reply.thinking) for one in samples if one.reply.thinking]
        texts = [(one, self.prompt(rederive_text(one.example, its))) for one, its in thought]
        asked = [(one, text) for one, text in texts if text is not None]
        requests = [SampleRequest(text) for _, text in asked]
        pending = self.pool.submit(requests, GREEDY_ANSWER, use_adapter)
        return Rederived([one for one, _ in asked], pending)

    def explain(self, samples: Sequence[Sample]) -> Explanations:
        """Asks the base model for the probabilities of the answers after each thinking, without the
        clauses that state one of them, and after none."""
        readings: list[tuple[Sample, list[Pair]]] = []
        # Equal thinkings are read once for an answer: what is asked alike of two images may have
        # another answer there.
        choices: dict[Key, LikelihoodRequest] = {}
        prompts: dict[str, str | None] = {}
        for one in samples:
            if not one.reply.thinking:
                continue
            pairs = []
            for asked in self.questions(one.example):
                own = [one.reply.answer or ""] if asked is one.example else []
                answers = [asked.answer, *own]
                kept = without_answers(one.reply.thinking, asked.question, answers)
                texts = rederive_text(asked, kept), rederive_text(asked, "")
                # Rendered once: the question alone is the same for all of its replies.
                for text in texts:
                    if text not in prompts:
                        prompts[text] = self.prompt(text)
                shown, bare = (prompts[text] for text in texts)
                if shown is None or bare is None:
                    continue
                replies = possible_replies(asked)
                pair = (shown, replies[0]), (bare, replies[0])
                pairs.append(pair)
                for key in pair:
                    choices.setdefault(key, LikelihoodRequest(key[0] + OPENING, (), replies))
            readings.append((one, pairs))
        return Explanations(readings, Likelihoods(self.pool, choices))

    def questions(self, example: Example) -> list[Example]:
        """Returns the example and other questions about its image, which a test image has not."""
        most = self.rewards["explains"].options.get("siblings", SIBLINGS)
        siblings = self.siblings.get(image_key(example), ())
        return [example, *(one for one in siblings if one.id != example.id)][: 1 + most]

    def prompt(self, text: str) -> str | None:
        """Returns a text as the user's turn, or None where it is too long to be shown."""
        turn = as_turn(self.processor, text, images=())
        length = len(self.processor.tokenizer(turn).input_ids) + REDERIVED_TOKENS
        return turn if length <= self.max_model_length else None

    @cached_property
    def processor(self) -> Any:
        """The model's processor, loaded when it is first needed."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.model_path)


@dataclass(frozen=True)
class Rederived:
    """Answers in flight, one for each sample whose thinking was shown."""

    samples: list[Sample]
    pending: PendingRollouts

    def write(self) -> None:
        """Waits, and writes each answer on its sample."""
        for sample, group in zip(self.samples, self.pending.result(), strict=True):
            sample.rederived = group[0].text


@dataclass(frozen=True)
class Language:
    """What the base model makes of thinkings as language, in flight."""

    samples: list[Sample]
    pending: PendingScores

    def write(self) -> None:
        """Waits, and writes on each sample how likely its thinking is."""
        for sample, (tokens,) in zip(self.samples, self.pending.result(), strict=True):
            sample.thinking_logprob = round(math.fsum(tokens) / len(tokens), DIGITS)


def read_language(pool: SamplerPool, samples: Sequence[Sample]) -> Language:
    """Asks the base model for the log-probs of each thinking after its prompt without the image.
    Of a reply that is not well formed, the whole text is taken for one."""
    requests = [
        LikelihoodRequest(without_images(one.prompt.text) + THINKING, (), [f">{thinking_of(one)}"])
        for one in samples
    ]
    return Language(list(samples), pool.score(requests, use_adapter=False))


def thinking_of(sample: Sample) -> str:
    return sample.reply.thinking or sample.rollout.text


Key = tuple[str, str]  # a prompt, and the reply whose probability is asked
Pair = tuple[Key, Key]  # with a thinking in the prompt, and without


class Likelihoods:
    """Probabilities in flight: of the first of several replies among them (one generated
    token tells), or of the only one, whose tokens are read."""

    def __init__(self, pool: SamplerPool, choices: Mapping[Key, LikelihoodRequest]) -> None:
        self.closed = {key: one for key, one in choices.items() if len(one.replies) > 1}
        self.open = {key: one for key, one in choices.items() if len(one.replies) == 1}
        self.shares = pool.weigh(list(self.closed.values()), use_adapter=False)
        self.scores = pool.score(list(self.open.values()), use_adapter=False)

    def result(self) -> dict[Key, float]:
        """Waits. The mean over an only reply's tokens is RLPR's (arXiv 2506.18254, eq. 2): one odd
        token does not bring it down, as it does a product."""
        found = {}
        for key, shares in zip(self.closed, self.shares.result(), strict=True):
            found[key] = round(shares[0], DIGITS)
        for key, (tokens,) in zip(self.open, self.scores.result(), strict=True):
            found[key] = round(math.fsum(map(math.exp, tokens)) / len(tokens), DIGITS)
        return found


@dataclass(frozen=True)
class Explanations:
    """What the base model makes of thinkings, in flight: for each sample the pairs of prompts of
    its own question, and then of its siblings."""

    readings: list[tuple[Sample, list[Pair]]]
    pending: Likelihoods

    def write(self) -> None:
        """Waits, and writes on each sample how surely the reference answers follow."""
        found = self.pending.result()
        for sample, pairs in self.readings:
            sample.explained = Explained(
                [found[shown] for shown, _ in pairs], [found[bare] for _, bare in pairs]
            )


@dataclass(frozen=True)
class AnswersAfterLooks:
    """Answers after looks, in flight: looks at the same detail of a prompt share theirs."""

    looks: list[list[Sample]]
    forms: list[ReplyForm]
    pending: PendingRollouts

    def write(self) -> None:
        """Waits, and writes each answer on the looks that it followed."""
        answers = zip(self.looks, self.forms, self.pending.result(), strict=True)
        for looks, form, (rollout,) in answers:
            for sample in looks:
                sample.answered = Answered(rollout.text, form)


def follow_looks(
    pool: SamplerPool, looker: Looker, looks: Sequence[Sample], use_adapter: bool
) -> AnswersAfterLooks:
    """Asks the question greedily after each look that names a place; one that names none is left
    without an answer. Raises UserError where an image and its detail do not fit the context."""
    asked: dict[tuple[int, Detail], list[Sample]] = {}
    prompts: list[PreparedExample] = []
    for one in looks:
        first = one.prepared
        assert first is not None, "the reply was sampled in this process"
        detail = looker.following(first, one.rollout.text)
        if detail is None:
            continue
        # The same place, however many tokens it took to name it.
        key = id(first), replace(detail, look_tokens=0)
        if key not in asked:
            prompts.append(looker.again(first, detail))
        asked.setdefault(key, []).append(one)
    requests = [SampleRequest(one.prompt.text, one.pixels) for one in prompts]
    sampling = SamplingSettings(1, 0.0, looker.reply_tokens)
    pending = pool.submit(requests, sampling, use_adapter)
    return AnswersAfterLooks(list(asked.values()), [one.prompt.form for one in prompts], pending)


Reading = Rederived | Explanations | Language | AnswersAfterLooks


def possible_replies(example: Example) -> list[str]:
    """Returns the replies whose probabilities are asked, from OPENING on; the reference is the
    first."""
    options = example.options or (["yes", "no"] if is_yes_no(example.answer) else [])
    others = [one for one in options if not same_words(one, example.answer)]
    # Whole replies where they compete, since one may begin another; else the answer's own tokens.
    end = CLOSING if others else ""
    return [f">{one.strip()}{end}" for one in [example.answer, *others][:MAX_REPLIES]]
