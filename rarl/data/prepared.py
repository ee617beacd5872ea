"""Example → PreparedExample: what the sampler and the trainer need, computed once, in Ray Data's
workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rarl.data.images import decode_image, fit_image, patch_rule
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
    image = decode_image(example.image)
    pixels = fit_image(image, processor.image_processor, max_pixels)
    prompt = render(processor, example, step)
    if example.boxes is not None:
        height, width = pixels.shape[:2]
        frame = Frame(family_of(processor), image.width, image.height, width, height)
        prompt = replace(prompt, frame=frame)
    rule = patch_rule(processor.image_processor)
    # In the text one token stands for the whole image.
    ids = np.array(processor.tokenizer(prompt.text).input_ids, dtype=np.int64)
    image_tokens = pixels.shape[0] * pixels.shape[1] // (rule.size * rule.merge) ** 2
    times = np.where(ids == processor.image_token_id, image_tokens, 1)
    return PreparedExample(
        example=replace(example, image=b""),
        prompt=prompt,
        pixels=pixels,
        prompt_token_ids=np.repeat(ids, times),
        patch_rule=rule,
    )


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
