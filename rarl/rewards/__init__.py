"""Answer → named scores → one reward. Here: what a reward is, and the columns that it is given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from rarl.schema import Example

Options = Sequence[str] | None
# TRL's signature: reward(prompts, completions, **columns) → a value in [0, 1] per completion, or
# None where it cannot be scored. All are aligned sequences, the columns those of `COLUMNS`.
# Keyword-only arguments with a default that are no column are the reward's options.
Reward = Callable[..., list[float | None]]

EXAMPLE_COLUMNS = tuple(one.name for one in fields(Example) if one.name != "images")
# `form`, `wording` and `frame` are the prompt's; `rederived` is the reply to the thinking without
# the image; `explained` is what the base model reads from it, `thinking_logprob` how likely it
# finds it (nats a token); `answered` is the reply after one that is a look; `verdict` is the
# judge's. The last five are None where nobody was asked.
OF_PROMPT = ("form", "wording", "frame")
OF_REPLY = ("rederived", "explained", "thinking_logprob", "answered", "verdict")
REPLY_COLUMNS = (*OF_PROMPT, *OF_REPLY)
COLUMNS = (*EXAMPLE_COLUMNS, *REPLY_COLUMNS)


def per_reply(score: Callable[..., float | None]) -> Reward:
    """Makes a reward of a function that scores one reply. It takes the reply's text, and
    keyword-only arguments: its row of the columns that it names, and its options.

        @per_reply
        def short(text: str, *, answer: str, longest: int = 80) -> float | None:
            return float(len(text) <= max(longest, len(answer)))
    """
    _, *named = inspect.signature(score).parameters.values()

    @functools.wraps(score)
    def reward(
        prompts: Sequence[str], completions: Sequence[str], **arguments: Any
    ) -> list[float | None]:
        given = {one.name: arguments[one.name] for one in named if one.name in arguments}
        columns = {name: values for name, values in given.items() if name in COLUMNS}
        options = {name: value for name, value in given.items() if name not in COLUMNS}
        rows = zip(completions, *columns.values(), strict=True)
        return [score(one, **dict(zip(columns, row, strict=True)), **options) for one, *row in rows]

    # Seen from outside, it takes the batch, then the columns and options that the function names.
    batch = inspect.signature(reward, follow_wrapped=False).parameters.values()
    signature = inspect.Signature([*batch][:2] + named + [*batch][2:])
    reward.__signature__ = signature  # type: ignore[attr-defined]
    return reward
