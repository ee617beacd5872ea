"""The check of the rewards for reasoning before anything is paid for: whether they can score the
data at all, and what a text earns that says the same of every image."""

from __future__ import annotations

import numpy as np

from rarl.config import Config
from rarl.data.columns import SCHEMA
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.errors import UserError
from rarl.rewards.registry import find_rewards
from rarl.rewards.sensitivity import NEEDED, READS_THINKING, blind_means, scorable
from rarl.schema import Example

ROWS = 64  # that are scored
KNOWN_ROWS = 20_000  # whose material tells what is usual of an organ
REFUSED, WARNED = 0.05, 0.5  # of the rows that must be scorable
BLIND_WARNED, BLIND_REFUSED = 0.55, 0.65  # of what a blind text may earn
SIGNALS = (
    "What gives a signal: explains, which needs answers alone; facts, which `rarl prepare ... "
    "--facts siblings` makes of the other questions about an image; or judge, with a language "
    "model behind it"
)
ANSWERS_SUFFICE = ("explains", "consistency")


def check_rewards(config: Config, data: str, display: Display) -> None:
    """Scores some rows of the training data with fixed texts, and tells what is wrong with the
    rewards for reasoning. Raises UserError for one that scores hardly any row where none is
    configured that needs answers alone, and for one that pays well for a text that says the same of
    every image, unless `train.on_silent_reward` is "warn"."""
    paid = [name for name, one in config.rewards.items() if one.weight]
    counted = [name for name in paid if name in READS_THINKING]
    if not counted:
        return
    rewards, refuses = find_rewards(config.rewards), config.train.on_silent_reward != "warn"
    known = draw_rows(data, KNOWN_ROWS, config.seed)
    examples = known[:ROWS]
    few = f"{len(examples)} rows, drawn from {data}"
    for name in counted:
        share = scorable(examples, rewards[name], name)
        if share < WARNED:
            lacking = (
                f"rewards.{name} can score {share:.0%} of {few}: the others have no "
                f"`{NEEDED[name]}`"
            )
            others = [other for other in ANSWERS_SUFFICE if other in paid]
            if others:
                display.note(f"{lacking}; on them {' and '.join(others)} acts, which needs none")
                continue
            advice = f"There a right answer is paid the same whatever the reasoning. {SIGNALS}"
            if share < REFUSED and refuses:
                override = f"rewards.{name}=null takes it out, train.on_silent_reward=warn goes on"
                raise UserError(f"{lacking}. {advice}. {override}")
            display.note(f"warning: {lacking}. {advice}")
        means = blind_means(examples, known, rewards[name], name)
        kind = max(means, key=means.__getitem__, default="")
        if not means or means[kind] <= BLIND_WARNED:
            continue
        told = (
            f'rewards.{name} pays {means[kind]:.2f} on average for "{kind}", one text for all '
            f"images of an organ ({few}): it can be earned without looking"
        )
        if means[kind] > BLIND_REFUSED and refuses:
            override = "train.on_silent_reward=warn trains on it all the same"
            raise UserError(f"{told}. Balance the data, or lower its weight; {override}")
        display.note(f"warning: {told}")


def draw_rows(data: str, most: int, seed: int) -> list[Example]:
    """Returns rows of a data set in random order, all of them if they are not more than `most`,
    without their images."""
    rows = ParquetRows(data)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:most]
    return rows.without_images(chosen, [name for name in SCHEMA.names if name != "images"])
