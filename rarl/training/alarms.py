"""What is wrong with a run, in words, from its steps' figures: rewards that train nothing, an
adapter that does not move, replies that shrink, one data set that is forgotten for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW = 20  # steps that have to agree
NOTHING = 0.95  # of the replies without a value, or of the groups that nothing tells apart
EARNED = 0.95  # a mean from which nothing is left to be told apart
COPIES_EARN = 0.5  # of what the originals earn above a thinking that says nothing
OF_REWARDS = ("unscored", "without_spread", "sensitivity")  # keys, up to the slash
STILL = 1e-5  # of the layers' norms, by which an adapter moves in its first steps at least
SHRUNK = 0.4  # of the length that replies had
FALL = 0.05  # of accuracy, in two measurements in a row, that is told
MALFORMED = 0.2  # a reward for the form under which hardly a reply has it


def alarms(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns a sentence by what it is about, from all steps that were made; nothing before there
    are `WINDOW`."""
    recent, found = rows[-WINDOW:], dict[str, str]()
    if len(recent) < WINDOW:
        return found
    span = f"in steps {recent[0]['step']} to {recent[-1]['step']}"
    for key in recent[-1]:
        what, _, name = key.partition("/")
        mean = mean_of(recent, key)
        if mean is None:
            continue
        if what == "unscored" and mean >= NOTHING:
            found[key] = (
                f"the reward {name} had no value for {mean:.0%} of the replies {span}: it trains "
                "nothing; give it what it compares with, or take it out"
            )
        elif what == "without_spread" and mean >= NOTHING:
            if (mean_of(recent, f"reward/{name}") or 0.0) < EARNED:
                found[key] = (
                    f"the reward {name} told the replies apart in {1 - mean:.0%} of the groups "
                    f"{span}: it trains next to nothing"
                )
        elif what == "sensitivity" and mean > COPIES_EARN:
            reward, _, kind = name.partition("/")
            found[key] = (
                f"the reward {reward} hardly sees what is said: {kind} copies of the thinkings "
                f"earned {mean:.0%} of what these earn above silence {span}"
            )
    for key, sentence in (
        ("adapter/movement", is_still(recent)),
        ("length", shrinks(recent)),
        ("forgets", forgets(rows)),
    ):
        if sentence is not None:
            found[key] = sentence
    return found


def of_rewards(about: str) -> bool:
    """Tells whether an alarm is about a reward."""
    return about.split("/")[0] in OF_REWARDS


def is_still(rows: Sequence[dict[str, Any]]) -> str | None:
    """Says so, and what may be the reason, if the adapter has not moved in the run's first
    steps."""
    moved = [row["adapter/movement"] for row in rows if row.get("adapter/movement") is not None]
    if rows[0]["step"] != 1 or len(moved) < WINDOW or max(moved) - min(moved) >= STILL:
        return None
    told = f"the adapter has moved its layers by less than {STILL:.3%} in {WINDOW} steps"
    if (mean_of(rows, "groups_without_spread") or 0.0) >= NOTHING:
        return f"{told}: hardly a group has replies that earn differently; see `rarl probe`"
    form = mean_of(rows, "reward/format")
    if form is not None and form < MALFORMED:
        return f"{told}: {form:.0%} of the replies are well formed, the others earn next to nothing"
    rate = rows[-1].get("learning_rate") or 0.0
    return f"{told}: raise train.learning_rate (now {rate:g}), ten times at first"


def shrinks(rows: Sequence[dict[str, Any]]) -> str | None:
    """Says so if replies have become far shorter within these steps."""
    lengths = [row["completion_tokens"] for row in rows if row.get("completion_tokens")]
    part = WINDOW // 4
    if len(lengths) < WINDOW or "completion_truncated" not in rows[-1]:
        return None
    first, last = (sum(some) / part for some in (lengths[:part], lengths[-part:]))
    if last >= SHRUNK * first:
        return None
    span = f"in steps {rows[0]['step']} to {rows[-1]['step']}"
    return (
        f"replies have shrunk from {first:.0f} to {last:.0f} tokens {span}: look at what is left "
        "of the thinking in `samples/`; a reward for it, or grpo.kl_beta, holds it"
    )


def forgets(rows: Sequence[dict[str, Any]]) -> str | None:
    """Says so if the last two measurements on the way found one data set lower than it was, while
    they found another higher than at first."""
    falls, rises = [], []
    for key in (one for one in rows[-1] if one.startswith("eval/") and one.endswith("/accuracy")):
        name = key.split("/", 1)[1].removesuffix("/accuracy")
        course = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if len(course) < 3:
            continue
        step, best = max(course[:-2], key=lambda point: point[1])
        last = [value for _, value in course[-2:]]
        if max(last) <= best - FALL:
            falls.append(f"{name} has fallen from {best:.0%} after step {step} to {last[-1]:.0%}")
        if min(last) >= course[0][1] + FALL:
            rises.append(f"{name} has risen from {course[0][1]:.0%} to {last[-1]:.0%}")
    if not falls or not rises:
        return None
    return (
        f"accuracy on {' and '.join(falls)}, while that on {' and '.join(rises)}: what is learnt "
        "does not hold elsewhere. evaluation.validation keeps the best adapter, grpo.kl_beta holds "
        "the policy nearer to the base, and fewer steps forget less"
    )


def mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Returns the mean of the values that are there; None if they are of less than half of the
    steps."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if 2 * len(values) >= len(rows) else None
