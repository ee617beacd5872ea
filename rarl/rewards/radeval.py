"""`radeval`: the metrics of the package RadEval (RadGraph, GREEN, CRIMSON and others) as a reward.
It is imported only where it is used; RARL does not depend on it."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rarl.errors import UserError
from rarl.replies.tags import parse_reply
from rarl.schema import ReplyForm
from rarl.system.imports import own_error

INSTALL = "pip install RadEval"
Metric = Callable[..., Sequence[Any]]


def radeval_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    form: Sequence[ReplyForm],
    rationale: Sequence[str | None],
    metric: str = "radgraph",
    key: str = "",
    lowest: float = 0.0,
    highest: float = 1.0,
    **_: Any,
) -> list[float | None]:
    """Pays what a metric of RadEval says of the thinking as a report, with the rationale as the
    reference. `metric` and `key` are RadEval's names of a metric and of the one of its numbers that
    is meant (its first, where none is named); values from `lowest` to `highest` become 0 to 1, and
    what is beyond them the nearest of these. For a distance, where less is better, `lowest` is
    the larger one.

    None for a prompt without thinking, without a rationale, and where the metric gives no number; 0
    for a malformed reply.
    """
    if lowest == highest:
        raise UserError("rewards.radeval.options: lowest and highest must differ")
    values: list[float | None] = [None] * len(completions)
    asked: list[tuple[int, str, str]] = []
    for place, (text, shape, truth) in enumerate(zip(completions, form, rationale, strict=True)):
        if shape == "answer" or not truth:
            continue
        reply = parse_reply(text, shape)
        if reply.well_formed and reply.thinking:
            asked.append((place, reply.thinking, truth))
        else:
            values[place] = 0.0
    if asked:
        places, texts, truths = (list(column) for column in zip(*asked, strict=True))
        given = load_metric(metric, key)(completions=texts, ground_truth=truths)
        for place, value in zip(places, given, strict=True):
            if value is not None and not math.isnan(value):
                share = (float(value) - lowest) / (highest - lowest)
                values[place] = min(1.0, max(0.0, share))
    return values


def require_radeval() -> None:
    """Raises UserError where the package is not installed."""
    if importlib.util.find_spec("RadEval") is None:
        raise UserError(f"rewards.radeval: the package RadEval is not installed: {INSTALL}")


@cache
def load_metric(metric: str, key: str) -> Metric:
    """Returns RadEval's own reward function, with its model loaded once in this process. Raises
    UserError for a metric that it does not have, or whose own packages are not installed."""
    require_radeval()
    try:
        make = importlib.import_module("RadEval.rewards").make_reward_fn
        made: Metric = make(metric, **({"key": key} if key else {}))
    except Exception as error:
        said = own_error(error)
        raise UserError(f"rewards.radeval: metric '{metric}' cannot be had: {said}") from None
    return made
