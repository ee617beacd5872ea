"""`rarl tune`: short runs with several values of a key, one after the other on the same engines,
and what each came to."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from rarl.commands.checked_rewards import check_rewards
from rarl.commands.resolve import resolve
from rarl.commands.selecting import require_probe, training_order
from rarl.commands.session import open_session, use_pool
from rarl.commands.train import train
from rarl.config import Config, load_config
from rarl.display import Display
from rarl.errors import UserError
from rarl.evaluation.probe import ProbedShare
from rarl.evaluation.results import clear_sign
from rarl.intervals import change_intervals95
from rarl.rollout.pool import SamplerPool
from rarl.samples import Sample
from rarl.training.alarms import mean_of
from rarl.training.interim import read_interim
from rarl.training.log import RECENT, read_metrics
from rarl.training.run_dir import RunDir

OF_ENGINES = ("model.", "rollout.num_actors", "rollout.max_model_length", "device", "judge")
AROUND = (0.2, 1.0, 5.0)  # times the configured learning rate, where nothing is named
FOLDER = "tune"
# The values of a list with commas, which may be lists and mappings themselves.
VALUE = re.compile(r"(?:[^,\[{]|\[[^\]]*\]|\{[^}]*\})+")


@dataclass(frozen=True)
class Trial:
    """One short run: what was set, and its figures after the last step.

    reward: mean of the last steps. replies: the greedy ones to questions of the data set `data`
    (None: nothing was measured). flips: share of these that are no longer the base's.
    """

    settings: tuple[str, ...]
    reward: float
    movement: float
    without_spread: float
    data: str | None = None
    replies: Sequence[Sample] = ()
    flips: float | None = None

    @cached_property
    def accuracy(self) -> ProbedShare | None:
        """The share of right replies; None where there are none."""
        if not self.replies:
            return None
        units = [one.example.unit for one in self.replies]
        return ProbedShare.of([float(one.is_right) for one in self.replies], units)

    @property
    def questions(self) -> list[str]:
        """The ids of what was asked."""
        return [one.example.id for one in self.replies]


@dataclass(frozen=True)
class Lead:
    """How far the trial to take is ahead of another, in percentage points on the same questions,
    with the 95 % interval over patients or images, and whether that is clear."""

    other: Trial
    points: float
    low: float
    high: float
    clear: bool

    def __str__(self) -> str:
        interval = f"{self.low:+.1f} to {self.high:+.1f}"
        return f"{', '.join(self.other.settings)} ({self.points:+.1f} points, {interval})"


def tune(
    path: Path, overrides: Sequence[str], sets: Sequence[str], steps: int, display: Display
) -> list[Trial]:
    """Makes a run of `steps` steps for every combination of the values in `sets`, such as
    "train.learning_rate=1e-5,5e-5", in the run directory's folder `tune`. One that is there already
    is not made again. Raises UserError."""
    base = load_config(path, list(overrides))
    if base.method != "grpo":
        raise UserError(
            f"{path}: method={base.method}: trials are compared by rewards and by what is measured "
            "on the way, which supervised training has not; train with each value in a run "
            "directory of its own, and set them side by side with `rarl compare`"
        )
    configs = {
        settings: trial_config(path, overrides, settings, steps, base)
        for settings in combinations(sets or around(base))
    }
    found, pool = [], None
    with ExitStack() as stack:
        for settings, config in configs.items():
            display.note(f"trial {', '.join(settings)}")
            pool = run_trial(config, pool, stack, display)
            found.append(read_trial(settings, config, base.evaluation.validation))
    return found


def run_trial(
    config: Config, pool: SamplerPool | None, stack: ExitStack, display: Display
) -> SamplerPool | None:
    """Makes one run, unless it is finished. The engines of the first stay up until the stack is
    left; returns them."""
    require_probe(config)
    setup = resolve(config)
    if setup.run_dir.adapter.is_dir():
        return pool
    check_rewards(config, str(setup.train_data), display)
    data = {"train": str(setup.train_data), **setup.eval_data}
    with ExitStack() as own:
        if pool is not None:
            own.enter_context(use_pool(pool))
        session = open_session(setup, display, data, trains=True)
        live = (own if pool is not None else stack).enter_context(session)
        order = training_order(setup, live.checked["train"], display)
        train(setup, live, order, display)
        return live.pool


def combinations(sets: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns every combination of the values of the keys. Raises UserError for what is no key with
    values, and for a key that needs other engines."""
    choices = []
    for one in sets:
        key, _, values = one.partition("=")
        if not values:
            raise UserError(f"--set {one}: expected key=value,value")
        if key.startswith(OF_ENGINES):
            raise UserError(
                f"--set {one}: the trials share their engines, which {key} would change"
            )
        choices.append([f"{key}={value.strip()}" for value in VALUE.findall(values)])
    return list(product(*choices))


def around(config: Config) -> list[str]:
    """Returns the learning rates to try where nothing is named."""
    rates = ",".join(f"{factor * config.train.learning_rate:.3g}" for factor in AROUND)
    return [f"train.learning_rate={rates}"]


def trial_config(
    path: Path, overrides: Sequence[str], settings: Sequence[str], steps: int, base: Config
) -> Config:
    """Returns the configuration of one trial: measured once, after its last step."""
    name = re.sub(r"[^\w.=+-]+", "-", "_".join(settings))
    own = [
        f"run_dir={Path(base.run_dir) / FOLDER / name}",
        f"train.steps={steps}",
        f"train.checkpoint_every={steps}",
        f"evaluation.every={steps if base.data.eval else 0}",
        "evaluation.validation=null",
        "evaluation.patience=null",
    ]
    if base.data.select.needs_probe:
        # A trial has none of its own.
        own.append(f"data.select.probe={base.data.select.probe or base.run_dir}")
    return load_config(path, [*overrides, *settings, *own])


def read_trial(settings: tuple[str, ...], config: Config, validation: str | None) -> Trial:
    """Returns the figures of a finished trial, of the validation data or else of the first data set
    that is measured."""
    run_dir = RunDir(Path(config.run_dir).expanduser().resolve())
    rows = read_metrics(run_dir.metrics)
    recent, last = rows[-RECENT:], rows[-1]
    measured = [key.split("/")[1] for key in last if re.fullmatch("eval/[^/]+/accuracy", key)]
    data = validation if validation in measured else next(iter(measured), None)
    return Trial(
        settings=settings,
        reward=mean_of(recent, "reward/mean") or 0.0,
        movement=last["adapter/movement"],
        without_spread=mean_of(recent, "groups_without_spread") or 0.0,
        data=data,
        replies=read_interim(run_dir, data, last["step"]) if data else (),
        flips=last[f"eval/{data}/flips"] if data else None,
    )


def best_of(trials: Sequence[Trial]) -> tuple[Trial, list[Lead]]:
    """Returns the trial to take, by accuracy or else by reward, and how far it is ahead of the
    others that answered the same questions."""
    measured = [one for one in trials if one.accuracy is not None]
    if not measured:
        return max(trials, key=lambda one: one.reward), []
    best = max(measured, key=lambda one: (one.accuracy.mean if one.accuracy else 0.0, one.reward))
    others = [one for one in measured if one is not best and one.questions == best.questions]
    return best, [lead_of(best, one) for one in others]


def lead_of(best: Trial, other: Trial) -> Lead:
    """Compares two trials question by question."""
    changes = [
        float(one.is_right) - float(its.is_right)
        for one, its in zip(best.replies, other.replies, strict=True)
    ]
    ((low, high),) = change_intervals95([(changes, [one.example.unit for one in best.replies])])
    points = (100 * math.fsum(changes) / len(changes), 100 * low, 100 * high)
    return Lead(other, *points, clear=clear_sign(len(changes), low, high) > 0)


def choice_in_words(best: Trial, leads: Sequence[Lead]) -> str:
    """Returns which trial to take, and how clear that is."""
    told = f"it would take {', '.join(best.settings)}"
    if best.accuracy is None:
        return f"{told}, by the reward alone: no replies to held-out questions are there"
    questions = f"{len(best.replies)} questions of {best.data}"
    if alike := [str(one) for one in leads if not one.clear]:
        return f"{told}, which is not clear: {questions} cannot tell it from {'; '.join(alike)}"
    ahead = f", clearly ahead of {'; '.join(map(str, leads))}" if leads else ""
    return f"{told}{ahead}"
