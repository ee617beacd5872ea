"""Rewards by name, or by the import path of a user's own function, with their options bound."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from rarl.config import RewardConfig
from rarl.errors import UserError
from rarl.rewards import COLUMNS, Reward
from rarl.rewards.answer import accuracy_reward, items_reward, letter_reward
from rarl.rewards.boxes import boxes_reward
from rarl.rewards.facts import facts_reward
from rarl.rewards.form import format_reward, length_reward, repetition_reward
from rarl.rewards.judge import judge_reward
from rarl.rewards.labels import labels_reward
from rarl.rewards.radeval import radeval_reward, require_radeval
from rarl.rewards.thinking import (
    consistency_reward,
    explains_reward,
    fluency_reward,
    reasoning_reward,
)
from rarl.system.imports import import_object

REWARDS: dict[str, Reward] = {
    "format": format_reward,
    "accuracy": accuracy_reward,
    "letter": letter_reward,
    "items": items_reward,
    "boxes": boxes_reward,
    "labels": labels_reward,
    "reasoning": reasoning_reward,
    "facts": facts_reward,
    "consistency": consistency_reward,
    "explains": explains_reward,
    "fluency": fluency_reward,
    "judge": judge_reward,
    "radeval": radeval_reward,
    "repetition": repetition_reward,
    "length": length_reward,
}


def find_rewards(settings: Mapping[str, RewardConfig]) -> dict[str, Reward]:
    """Returns the functions behind the names of a configuration, with their options bound. Raises
    UserError for an unknown name, an unknown or wrongly typed option, a gate that leads nowhere,
    and a reward whose package is not installed."""
    rewards = {}
    if "radeval" in settings:
        require_radeval()
    for name in settings:
        check_gates(name, settings)
    for name, setting in settings.items():
        rewards[name] = bind_options(name, find_reward(name), setting.options)
    return rewards


def find_reward(name: str) -> Reward:
    """Returns RARL's own reward of that name, or what an import path leads to."""
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        known = f"known are {', '.join(REWARDS)}, or give an import path 'module:function'"
        raise UserError(f"rewards: unknown reward '{name}'; {known}")
    found: Reward = import_object(name)
    try:
        inspect.signature(found).bind(prompts=[], completions=[], **{name: [] for name in COLUMNS})
    except (TypeError, ValueError) as error:
        wanted = "function(prompts, completions, **columns) → list of values"
        raise UserError(f"rewards: '{name}' is no {wanted}: {error}") from None
    return found


def check_gates(
    name: str, settings: Mapping[str, RewardConfig], chain: tuple[str, ...] = ()
) -> None:
    """Follows the gates from one reward, by way of `chain`, to the end of each chain."""
    chain = (*chain, name)
    for gate in settings[name].gates:
        if gate not in settings:
            fault = f"no reward '{gate}' is configured; there are {', '.join(settings)}"
            raise UserError(f"rewards.{name}.gate: {fault}")
        if gate in chain:
            circle = " → ".join([*chain, gate])
            raise UserError(f"rewards.{chain[0]}.gate: the gates form a circle: {circle}")
        check_gates(gate, settings, chain)


def bind_options(name: str, reward: Reward, options: Mapping[str, Any]) -> Reward:
    """Returns the reward with its options given: keyword-only arguments with a default, which gives
    the type, that are no column."""
    if not options:
        return reward
    known = {
        one.name: one.default
        for one in inspect.signature(reward).parameters.values()
        if one.kind is one.KEYWORD_ONLY and one.default is not one.empty and one.name not in COLUMNS
    }
    for key, value in options.items():
        where = f"rewards.{name}.options"
        if key not in known:
            names = ", ".join(known) or "none"
            raise UserError(f"{where}: unknown option '{key}'; known are {names}")
        if kind(value) != kind(known[key]) and known[key] is not None:
            raise UserError(f"{where}.{key}: expected a {kind(known[key])}, got {value!r}")
    return partial(reward, **options)


def kind(value: Any) -> str:
    """Returns what an option's value is, in words; whole numbers and fractions are one kind."""
    if isinstance(value, bool):
        return "truth value"
    return "number" if isinstance(value, int | float) else type(value).__name__
