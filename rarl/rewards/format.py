"""`format`: is the whole reply thinking and answer in tags?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rarl.rewards.parsing import parse_reply


def format_reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 for a well-formed reply, else 0."""
    return [float(parse_reply(text).well_formed) for text in completions]
