"""Example → PreparedExample: what the sampler and the trainer need, computed once, in Ray Data's
workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarl.data.images import BadImage, decode_image, fit_images, patch_rule
from rarl.errors import UserError
from rarl.replies.boxes import family_of
from rarl.schema import Example, Frame, PreparedExample, Prompt

# How an example becomes a prompt: (processor, example, step, or None in evaluation) → Prompt.
RenderPrompt = Callable[[Any, Example, int | None], Prompt]


def prepare_example(
    example: Example,
    processor: Any,
    render: RenderPrompt,
    max_pixels: int | None = None,
    step: int | None = None,
) -> PreparedExample:
    """Decodes, fits and tokenises one example. Raises BadImage."""
    pictures = [decode_image(image) for image in example.images]
    pixels = fit_images(pictures, processor.image_processor, max_pixels)
    prompt = render(processor, example, step)
    sizes = [(picture.height, picture.width) for picture in pictures]
    shown = [(one.shape[0], one.shape[1]) for one in pixels]
    looks = prompt.form == "look"
    if looks or example.boxes is not None:
        prompt = replace(prompt, frame=prompt_frame(sizes, shown, processor))
    prepared = assemble(example, prompt, pixels, processor)
    return replace(prepared, original=example.images[0]) if looks else prepared


def assemble(
    example: Example, prompt: Prompt, pixels: tuple[NDArray[np.uint8], ...], processor: Any
) -> PreparedExample:
    """Tokenises a prompt with its images, as they are shown. Raises BadImage where the prompt has
    not a placeholder for each."""
    rule = patch_rule(processor.image_processor)
    # In the text one token stands for a whole image.
    ids = np.array(processor.tokenizer(prompt.text).input_ids, dtype=np.int64)
    times = np.ones_like(ids)
    times[placeholders(ids, processor, len(pixels))] = [
        one.shape[0] * one.shape[1] // (rule.size * rule.merge) ** 2 for one in pixels
    ]
    return PreparedExample(
        example=replace(example, images=()),
        prompt=prompt,
        pixels=pixels,
        prompt_token_ids=np.repeat(ids, times),
        patch_rule=rule,
    )


def prompt_frame(
    sizes: Sequence[tuple[int, int]], shown: Sequence[tuple[int, int]], processor: Any
) -> Frame | None:
    """Returns how boxes are written about images of these (height, width), which are shown at
    others; None where it is not an only image, which boxes are of."""
    if len(sizes) != 1:
        return None
    ((height, width),), ((shown_height, shown_width),) = sizes, shown
    return Frame(family_of(processor), width, height, shown_width, shown_height)


def placeholders(ids: NDArray[np.int64], processor: Any, images: int) -> NDArray[np.int64]:
    """Returns where the tokens of a prompt stand for its images, in order. Raises BadImage if they
    are not as many."""
    found = np.flatnonzero(ids == processor.image_token_id)
    if len(found) != images:
        raise BadImage(f"placeholders are {len(found)} in the prompt, for {images} images")
    return found


def require_room(
    prepared: PreparedExample, max_completion_tokens: int, max_model_length: int
) -> None:
    """Raises UserError if prompt and completion do not fit the sampler's context."""
    prompt = len(prepared.prompt_token_ids)
    needed = prompt + max_completion_tokens
    if needed > max_model_length:
        both = f"its prompt of {prompt} tokens and a completion of up to {max_completion_tokens}"
        advice = f"raise it to {needed}, or lower data.max_pixels or the completion's length"
        limit = f"rollout.max_model_length={max_model_length}"
        raise UserError(f"example '{prepared.example.id}': {both} do not fit {limit}: {advice}")
