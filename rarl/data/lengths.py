"""How long prompt and reply of a row are for a model, in tokens, known before anything is sampled:
an image's tokens follow from its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rarl.config import Config
from rarl.data.images import fitted_size, pixels_of_each
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import placeholders, prompt_frame
from rarl.errors import UserError
from rarl.prompts import (
    LOOK,
    PromptPlan,
    can_be_looked_at,
    evaluation_prompts,
    imitation_prompts,
    target_reply,
    training_prompts,
    trains_looks,
    with_detail,
)
from rarl.schema import Example, Frame, Prompt, ReplyForm

# Every prompt that an example may be asked with: (processor, example) → prompts.
PromptsOf = Callable[[Any, Example], list[Prompt]]


class RowLengths(NamedTuple):
    """Tokens of a row: of its longest prompt, of the images in it, and of prompt and reply
    together, at most."""

    prompt: int
    image: int
    needed: int


@dataclass(frozen=True)
class LengthRule:
    """What makes a row long. `reply` is the bound of a reply's tokens, or makes the reply that is
    imitated from the example, the form of its prompt and the frame. `after_look` are the prompts
    that may follow a look, which show a detail beside the image. Picklable, if these are."""

    model_path: str
    max_pixels: int | None
    prompts: PromptsOf
    reply: int | Callable[[Example, ReplyForm, Frame | None], str]
    after_look: PromptsOf | None = None

    def lengths(
        self, example: Example, sizes: Sequence[tuple[int, int]], processor: Any
    ) -> RowLengths:
        """Returns the lengths of an example whose images have these (height, width). Raises
        BadImage for a size that no model takes, and for a prompt that has not a placeholder for
        each image."""
        shown = fitted_sizes(sizes, processor.image_processor, self.max_pixels)
        image = tokens_of(shown, processor.image_processor)
        frame = None if example.boxes is None else prompt_frame(sizes, shown, processor)
        prompts = [(prompt, 1) for prompt in self.prompts(processor, example)]
        if self.after_look is not None and can_be_looked_at(example):
            # The detail is a part of the image, and has as many tokens at most.
            after = self.after_look(processor, with_detail(example))
            prompts += [(prompt, 2) for prompt in after]
        found = []
        for prompt, times in prompts:
            ids = np.array(processor.tokenizer(prompt.text).input_ids, dtype=np.int64)
            # In the text one token stands for a whole image.
            marks = len(placeholders(ids, processor, times * len(sizes)))
            length = len(ids) - marks + times * image
            reply = self.reply
            if not isinstance(reply, int):
                text = reply(example, prompt.form, frame)
                reply = len(processor.tokenizer(text).input_ids) + 1  # the end of the turn
            found.append((length + reply, length))
        needed, longest = max(found)
        return RowLengths(longest, image, needed)


class MeasuredRow(NamedTuple):
    """The lengths of one row of a data set, and how many images it has."""

    path: str
    row: int
    lengths: RowLengths
    images: int


def require_room(rows: Sequence[MeasuredRow], limit: int) -> None:
    """Raises UserError where rows do not fit into `limit` tokens, `rollout.max_model_length`, which
    names the longest of all and what would be enough for it."""
    too_long = [one for one in rows if one.lengths.needed > limit]
    if not too_long:
        return
    longest = max(too_long, key=lambda one: one.lengths.needed)
    prompt, image, needed = longest.lengths
    example = ParquetRows(longest.path).column("id")[longest.row]
    raise UserError(
        f"{longest.path}: row {longest.row} is the longest: example '{example}', with a prompt of "
        f"{prompt} tokens ({image} of images) and a reply of up to {needed - prompt}. "
        f"{len(too_long)} of {len(rows)} rows do not fit rollout.max_model_length={limit}: set "
        f"rollout.max_model_length={needed}, or lower data.max_pixels or the replies' length"
    )


def training_lengths(config: Config, model_path: str) -> LengthRule:
    """Returns the rule for training data, whose prompts are drawn."""
    pixels, most = config.data.max_pixels, config.rollout.max_completion_tokens
    if config.method == "sft":
        plan = imitation_prompts(config.prompts, config.seed)
        return LengthRule(model_path, pixels, plan.longest, target_reply)
    prompts = training_prompts(config.prompts, config.seed)
    after = None
    if trains_looks(config.prompts):
        after = partial(prompts_of_all, [evaluation_prompts(config.prompts)])
    return LengthRule(model_path, pixels, prompts.longest, most, after)


def measured_lengths(config: Config, model_path: str, families: Sequence[str]) -> LengthRule:
    """Returns the rule for data that are measured with prompts of these families."""
    most = config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens
    usual = [family for family in families if family != LOOK]
    asked = [config.prompts.model_copy(update={"eval": family}) for family in usual]
    prompts = partial(prompts_of_all, [evaluation_prompts(one) for one in asked])
    after = prompts if LOOK in families else None
    return LengthRule(model_path, config.data.max_pixels, prompts, most, after)


def prompts_of_all(plans: Sequence[PromptPlan], processor: Any, example: Example) -> list[Prompt]:
    return [plan(processor, example) for plan in plans]


def image_tokens(
    sizes: Sequence[tuple[int, int]], image_processor: Any, max_pixels: int | None
) -> int:
    """Returns how many tokens a question's images of these (height, width) are to the model. Raises
    BadImage."""
    return tokens_of(fitted_sizes(sizes, image_processor, max_pixels), image_processor)


def fitted_sizes(
    sizes: Sequence[tuple[int, int]], image_processor: Any, max_pixels: int | None
) -> list[tuple[int, int]]:
    """Returns the (height, width) at which a question's images are shown. Raises BadImage."""
    bound = pixels_of_each(sizes, image_processor, max_pixels)
    return [fitted_size(*size, image_processor, bound) for size in sizes]


def tokens_of(shown: Sequence[tuple[int, int]], image_processor: Any) -> int:
    side = image_processor.patch_size * image_processor.merge_size
    return sum(int((height // side) * (width // side)) for height, width in shown)
