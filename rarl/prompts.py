"""Example → chat messages. The wordings are data (prompts.yaml); which one an example gets is drawn
by the seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from rarl.config import PromptsConfig, Section
from rarl.errors import UserError
from rarl.keys import read_yaml
from rarl.replies.boxes import STYLES, family_of, write_boxes
from rarl.replies.tags import TAG, target_text
from rarl.schema import Example, Frame, Prompt, ReplyForm

BUILT_IN = Path(__file__).with_suffix(".yaml")
IMAGE_TOKEN = "<|image_pad|>"
IMAGE_PLACEHOLDER = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
LOOK = "look"  # the family that a second look begins with
LOOK_LABELS = ("Whole image", "Detail")  # what is shown after it
YES_OR_NO = "Answer yes or no."
FORM_LINES: dict[ReplyForm, str] = {
    "think": "Reply as <think>your reasoning</think><answer>your answer</answer>.",
    "structured": (
        "Reply as <think>Findings: ... Impression: ...</think><answer>your answer</answer>."
    ),
    "answer": "Reply as <answer>your answer</answer>.",
    "look": "Reply as <look>what to see closely</look>.",
}


class Family(Section):
    """Wordings that ask for the same form of reply."""

    form: ReplyForm
    options: Literal["listed", "lettered", "hidden"] = "listed"
    wordings: Annotated[list[str], Field(min_length=1)]
    without_options: str | None = None  # instead of the wording, where a question has no options


Families = TypeAdapter(dict[str, Family])


@cache
def read_families(path: Path = BUILT_IN) -> dict[str, Family]:
    """Raises UserError naming file, family and key."""
    try:
        return Families.validate_python(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True)
class PromptPlan:
    """Which family and wording an example is asked with. Picklable; calling it makes the prompt.

    In training the family is drawn by weight and the wording evenly, as a function of seed, step
    and example alone. Without a step, in evaluation, it is the first wording of the heaviest
    family. Families that ask where to look are for questions about one image.
    """

    families: dict[str, Family]
    weights: dict[str, float]
    seed: int

    def __call__(self, processor: Any, example: Example, step: int | None = None) -> Prompt:
        return self.worded(processor, example, *self.choose(example, step))

    def worded(self, processor: Any, example: Example, name: str, number: int) -> Prompt:
        """Returns the example's question in one wording of a family."""
        family = self.families[name]
        for_boxes = example.answer_type == "boxes" or family.form == "look"
        asked = STYLES[family_of(processor)].asked if for_boxes else ""
        text = question_text(example, family, family.wordings[number], asked)
        turn = as_turn(processor, text, labels_of(example))
        return Prompt(turn, f"{name}/{number}", family.form)

    def longest(self, processor: Any, example: Example) -> list[Prompt]:
        """Returns for each family that may be drawn the wording of most tokens."""
        prompts = []
        for name in (name for name, weight in self.weights_for(example).items() if weight):
            family = self.families[name]
            counts = [tokens_of(processor.tokenizer, wording) for wording in family.wordings]
            number = int(np.argmax(counts))
            prompts.append(self.worded(processor, example, name, number))
        return prompts

    def weights_for(self, example: Example) -> dict[str, float]:
        """Returns the weights of the families that the example may be asked with."""
        if can_be_looked_at(example):
            return self.weights
        others = {
            name: weight
            for name, weight in self.weights.items()
            if self.families[name].form != "look"
        }
        return others if sum(others.values()) > 0 else {"plain": 1.0}

    def choose(self, example: Example, step: int | None) -> tuple[str, int]:
        """Family and number of the wording."""
        known = self.weights_for(example)
        names = sorted(known)
        if step is None:
            return max(names, key=lambda name: known[name]), 0
        digest = hashlib.sha256(f"{self.seed}/{step}/{example.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        weights = np.array([known[name] for name in names])
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        return name, int(rng.integers(len(self.families[name].wordings)))


def can_be_looked_at(example: Example) -> bool:
    """Whether a detail of the image may help with the question."""
    return len(labels_of(example)) == 1 and example.answer_type not in ("boxes", "report")


def with_detail(example: Example) -> Example:
    """Returns the example as it is asked after a look, with two images that are put in later."""
    return replace(example, images=(b"", b""), image_labels=LOOK_LABELS)


@lru_cache(maxsize=1024)
def tokens_of(tokenizer: Any, wording: str) -> int:
    return len(tokenizer(wording).input_ids)


@dataclass(frozen=True)
class ImitationPlan:
    """How a question is asked whose reference reply is imitated: as `with_rationale` says where it
    has one, else as `without` does, which asks for the answer alone. Picklable."""

    with_rationale: PromptPlan
    without: PromptPlan

    def of(self, example: Example) -> PromptPlan:
        return self.with_rationale if has_rationale(example.rationale) else self.without

    def __call__(self, processor: Any, example: Example, step: int | None = None) -> Prompt:
        return self.of(example)(processor, example, step)

    def longest(self, processor: Any, example: Example) -> list[Prompt]:
        """Returns what `PromptPlan.longest` does."""
        return self.of(example).longest(processor, example)


def target_reply(example: Example, form: ReplyForm, frame: Frame | None = None) -> str:
    """Returns the reply to imitate. A prompt that asks for thinking takes a rationale; boxes are
    written as the prompt's frame says."""
    answer = example.answer
    assert form == "answer" or has_rationale(example.rationale), example.id
    if example.answer_type == "boxes" and frame is not None:
        answer = write_boxes(example.boxes or (), frame)
    return target_text(form, example.rationale or "", answer)


def has_rationale(rationale: str | None) -> bool:
    return bool((rationale or "").strip())


def training_prompts(config: PromptsConfig, seed: int) -> PromptPlan:
    """Returns how training asks: the built-in families, and those of `config.templates`, which take
    the place of built-in ones of the same name. Raises UserError for a family that there is not, or
    when all weights are 0."""
    own = read_families(Path(config.templates)) if config.templates else {}
    families = read_families() | own
    for name in [*config.train, config.eval]:
        if name not in families:
            raise UserError(f"prompts: unknown family '{name}'; known are {', '.join(families)}")
    if not sum(config.train.values()) > 0:
        raise UserError("prompts.train: at least one family needs a weight above 0")
    return PromptPlan(families, config.train, seed)


def imitation_prompts(config: PromptsConfig, seed: int) -> ImitationPlan:
    """Without a rationale, families that ask for the answer alone are drawn by their weights; where
    none has a weight, `none` is asked. Raises UserError as `training_prompts` does."""
    plan = training_prompts(config, seed)
    families = plan.families
    if looking := looks_of(plan):
        raise UserError(
            f"prompts.train: {looking[0]} asks where to look, which is learnt by method=grpo alone"
        )
    weights = {
        one: weight for one, weight in plan.weights.items() if families[one].form == "answer"
    }
    if sum(weights.values()) > 0:
        return ImitationPlan(plan, PromptPlan(families, weights, seed))
    none = families.get("none")
    if none is None or none.form != "answer":
        none = read_families()["none"]
    return ImitationPlan(plan, PromptPlan({"none": none}, {"none": 1.0}, seed))


def evaluation_prompts(config: PromptsConfig) -> PromptPlan:
    """The one prompt of the measurements. Raises UserError for one that asks for no answer."""
    families = training_prompts(config, 0).families
    if families[config.eval].form == "look":
        raise UserError(
            f"prompts: {config.eval} asks where to look, and for no answer; `rarl eval --look` "
            "measures the answer after it"
        )
    return PromptPlan(families, {config.eval: 1.0}, 0)


def looks_of(plan: PromptPlan) -> list[str]:
    """Returns the families that ask where to look and may be drawn."""
    return [
        name for name in plan.weights if plan.weights[name] and plan.families[name].form == "look"
    ]


def trains_looks(config: PromptsConfig) -> bool:
    """Whether training asks where to look."""
    return bool(looks_of(training_prompts(config, 0)))


def looking_prompts(config: PromptsConfig) -> PromptPlan:
    """Where to look, asked of every question about one image; the others are asked as they are
    measured."""
    usual = evaluation_prompts(config)
    return PromptPlan(usual.families, {LOOK: 1.0, config.eval: 0.5}, 0)


def plain_prompt() -> PromptPlan:
    """One prompt for everything, the default of training and measurements."""
    return evaluation_prompts(PromptsConfig())


def question_text(example: Example, family: Family, wording: str, asked: str = "") -> str:
    """The question, its options where it has any, the wording, what is `asked` of the answer beside
    it, and the form of the reply."""
    if not example.options and family.without_options:
        wording = family.without_options
    lines = [example.question, *option_lines(example, family), wording, asked]
    return "\n".join([*filter(None, lines), FORM_LINES[family.form]])


def option_lines(example: Example, family: Family) -> list[str]:
    if family.options == "hidden":
        return []
    if example.options and family.options == "lettered":
        return [
            f"{chr(ord('A') + index)}) {option}" for index, option in enumerate(example.options)
        ]
    if example.options:
        return ["Options: " + ", ".join(example.options) + "."]
    yes_no = example.answer_type == "closed" and example.answer.strip().lower() in ("yes", "no")
    return [YES_OR_NO] if yes_no else []


def labels_of(example: Example) -> tuple[str, ...]:
    """The label of each image of an example, empty where it has none."""
    return example.image_labels or ("",) * len(example.images)


def chat_messages(text: str, images: Sequence[str] = ("",)) -> list[dict[str, Any]]:
    """One user turn: the images in order, each behind its label if that is not empty, then the
    text. The images themselves travel beside the messages."""
    content: list[dict[str, Any]] = []
    for label in images:
        named = [{"type": "text", "text": f"{label}: "}, {"type": "image"}]
        content += [*named, {"type": "text", "text": "\n"}] if label else named[1:]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def as_turn(processor: Any, text: str, images: Sequence[str]) -> str:
    """The turn through the processor's own chat template, up to where the reply begins; `images`
    are the labels of those that it shows."""
    messages = chat_messages(text, images)
    rendered: str = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return rendered


def without_images(prompt: str) -> str:
    """The same prompt with nothing to look at. Raises UserError for a template that writes the
    placeholder of an image otherwise."""
    bare = prompt.replace(IMAGE_PLACEHOLDER, "")
    if IMAGE_TOKEN in bare:
        raise UserError(
            "the prompt has an image that cannot be left out: the chat template writes no "
            f"{IMAGE_PLACEHOLDER}"
        )
    return bare


def rederive_text(example: Example, thinking: str) -> str:
    """The question again, with the reasoning in place of the image (CAPO, arXiv 2506.12849):
    whoever reasoned well can be followed without looking. Tags and special tokens inside the
    reasoning are taken out: it is data, not a turn."""
    thinking = SPECIAL_TOKEN.sub(" ", TAG.sub(" ", thinking))
    family = Family(form="answer", wordings=["Answer from these findings."])
    return f"Findings: {thinking}\n{question_text(example, family, family.wordings[0])}"
