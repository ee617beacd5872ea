"""Rewards by name, or by the import path of a user's own function, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rarl.errors import UserError
from rarl.imports import import_object
from rarl.rewards.accuracy import accuracy_reward
from rarl.rewards.format import format_reward
from rarl.schema import Example, Score

# TRL's signature: reward(prompts, completions, **columns) → a value in [0, 1] per completion, or None where it cannot
# be scored. All are aligned sequences; `columns` are the fields of `Example` by name, without the image.
Reward = Callable[..., list[float | None]]

REWARDS: dict[str, Reward] = {"format": format_reward, "accuracy": accuracy_reward}
COLUMNS = (
    "id",
    "image_id",
    "question",
    "answer",
    "answer_type",
    "options",
    "rationale",
    "modality",
    "organ",
    "dataset",
)


def find_rewards(weights: Mapping[str, float]) -> dict[str, Reward]:
    """The functions behind the names of a configuration. Raises UserError for a name that is neither."""
    return {name: REWARDS[name] if name in REWARDS else import_reward(name) for name in weights}


def import_reward(name: str) -> Reward:
    if ":" not in name:
        known = ", ".join(REWARDS)
        raise UserError(
            f"rewards: unknown reward '{name}'; known are {known}, or give an import path 'module:function'"
        )
    found: Reward = import_object(name)
    return found


def score_completions(
    examples: Sequence[Example],
    prompts: Sequence[str],
    completions: Sequence[str],
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
) -> list[Score]:
    """One Score per completion; the three sequences are aligned. A reward of None adds nothing to the sum."""
    columns = {name: [getattr(example, name) for example in examples] for name in COLUMNS}
    values = {name: checked(name, reward, prompts, completions, columns) for name, reward in rewards.items()}
    scores = []
    for index in range(len(completions)):
        own = {name: column[index] for name, column in values.items()}
        total = sum(weights[name] * value for name, value in own.items() if value is not None)
        scores.append(Score(own, float(total)))
    return scores


def checked(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[object]],
) -> list[float | None]:
    """Calls a reward and refuses what its contract does not allow."""
    values = reward(prompts=prompts, completions=completions, **columns)
    if len(values) != len(completions):
        raise UserError(f"reward '{name}' returned {len(values)} values for {len(completions)} completions")
    for value in values:
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"reward '{name}' returned {value}; values must lie in [0, 1] or be None")
    return values
