"""The reward curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rarl.files import replacing
from rarl.training.metrics import read_metrics

SMOOTHING = 10  # steps


def draw_curve(metrics: Path, out: Path) -> None:
    """Reward with its parts (or the loss) and the sampler mismatch (or the gradient) over the
    steps, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(metrics)
    steps = [row["step"] for row in rows]
    figure, (rewards, mismatch) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for key in [k for k in rows[0] if k.startswith("reward/")] or ["loss"]:
        values = np.array([np.nan if row[key] is None else row[key] for row in rows], dtype=float)
        (line,) = rewards.plot(steps, smooth(values), label=key.removeprefix("reward/"))
        rewards.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    rewards.set(
        xlabel="step",
        title=f"{'reward' if 'reward/mean' in rows[0] else 'loss'} (mean of {SMOOTHING} steps)",
    )
    rewards.legend(frameon=False)
    if "sampler_mismatch" in rows[0]:
        mismatch.semilogy(
            steps, [np.nan if (v := row["sampler_mismatch"]) is None else v for row in rows]
        )
        mismatch.set(xlabel="step", title="sampler mismatch, mean |Δ log-prob|")
    else:
        mismatch.semilogy(steps, [row["grad_norm"] for row in rows])
        mismatch.set(xlabel="step", title="norm of the gradient")
    for axes in (rewards, mismatch):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def smooth(values: Any) -> Any:
    """Trailing mean over at most `SMOOTHING` steps, gaps left out."""
    windows = [values[max(0, i - SMOOTHING + 1) : i + 1] for i in range(len(values))]
    return [np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows]
