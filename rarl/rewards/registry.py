"""Rewards by name, or by the import path of a user's own function, with their options bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.rewards.accuracy import accuracy_reward
from rarl.rewards.consistency import consistency_reward
from rarl.rewards.format import format_reward
from rarl.rewards.items import items_reward
from rarl.rewards.judge import judge_reward
from rarl.rewards.length import length_reward
from rarl.rewards.letter import letter_reward
from rarl.rewards.reasoning import reasoning_reward
from rarl.rewards.repetition import repetition_reward
from rarl.schema import Example
from rarl.system.imports import import_object

# TRL's signature: reward(prompts, completions, **columns) → a value in [0, 1] per completion, or
# None where it cannot be scored. All are aligned sequences, the columns those of `COLUMNS`.
# Keyword-only arguments with a default that are no column are the reward's options.
Reward = Callable[..., list[float | None]]

REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "accuracy": accuracy_reward,
    "letter": letter_reward,
    "items": items_reward,
    "reasoning": reasoning_reward,
    "consistency": consistency_reward,
    "judge": judge_reward,
    "repetition": repetition_reward,
    "length": length_reward,
}
EXAMPLE_COLUMNS = tuple(one.name for one in fields(Example) if one.name != "image")
# `form` and `wording` are the prompt's; `rederived` is the reply to the thinking without the image,
# or None; `verdict` is the judge's, or None.
COLUMNS = (*EXAMPLE_COLUMNS, "form", "wording", "rederived", "verdict")


def find_rewards(settings: Mapping[str, RewardConfig]) -> dict[str, Reward]:
    """The functions behind the names of a configuration.

    Raises UserError for an unknown name, an unknown or wrongly typed option, and a gate that leads
    nowhere.
    """
    for name in settings:
        check_gates(name, settings)
    return {
        name: bind_options(name, find_reward(name), one.options) for name, one in settings.items()
    }


def find_reward(name: str) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        known = ", ".join(REWARDS)
        raise UserError(
            f"rewards: unknown reward '{name}'; known are {known}, or give an import path 'module:function'"
        )
    found: Reward = import_object(name)
    try:
        inspect.signature(found).bind(prompts=[], completions=[], **{name: [] for name in COLUMNS})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"rewards: '{name}' is no function(prompts, completions, **columns) → list of values: {error}"
        ) from None
    return found


def check_gates(name: str, settings: Mapping[str, RewardConfig]) -> None:
    """Follows the gates from one reward to the end of their chain."""
    chain = [name]
    while (gate := settings[chain[-1]].gate) is not None:
        if gate not in settings:
            known = ", ".join(settings)
            raise UserError(
                f"rewards.{chain[-1]}.gate: no reward '{gate}' is configured; there are {known}"
            )
        if gate in chain:
            raise UserError(
                f"rewards.{name}.gate: the gates form a circle: {' → '.join([*chain, gate])}"
            )
        chain.append(gate)


def bind_options(name: str, reward: Reward, options: Mapping[str, Any]) -> Reward:
    if not options:
        return reward
    known = option_defaults(reward)
    for key, value in options.items():
        if key not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"rewards.{name}.options: unknown option '{key}'; known are {names}")
        if kind(value) != kind(known[key]) and known[key] is not None:
            raise UserError(
                f"rewards.{name}.options.{key}: expected a {kind(known[key])}, got {value!r}"
            )
    return partial(reward, **options)


def option_defaults(reward: Reward) -> dict[str, Any]:
    parameters = inspect.signature(reward).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name not in COLUMNS
    }


def kind(value: Any) -> str:
    """What an option's value is, in words; whole numbers and fractions are one kind."""
    if isinstance(value, bool):
        return "truth value"
    return "number" if isinstance(value, int | float) else type(value).__name__
