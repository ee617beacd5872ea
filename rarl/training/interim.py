"""Measurements while training goes on: some questions of each measured data set, greedily, every
few steps; and what follows from them for the adapter that the run ends with.

What is decided is a function of the rows of metrics.jsonl, so that a run that is continued decides
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from rarl.collect import Collector
from rarl.data.parquet import ParquetRows
from rarl.data.prepared import prepare_example
from rarl.data.stream import load_processor
from rarl.grpo.workers import Workers
from rarl.prompts import evaluation_prompts
from rarl.rollout.pool import SamplerPool
from rarl.rollout.sampler import SamplingSettings
from rarl.samples import Sample, flatten, read_samples, write_samples
from rarl.schema import PreparedExample
from rarl.training.inputs import TrainInputs
from rarl.training.log import read_metrics
from rarl.training.run_dir import RunDir
from rarl.training.step_metrics import Tally

INTERVAL = ("accuracy/low", "accuracy/high")
FIGURES = ("accuracy", *INTERVAL, "well_formed", "flips", "completion_tokens")


class Interim:
    """What is measured on the way. Each worker asks its share of the questions; all have the same
    figures."""

    def __init__(
        self, inputs: TrainInputs, pool: SamplerPool, workers: Workers, steps: int
    ) -> None:
        """`steps` are made already."""
        self.inputs, self.workers, self.settings = inputs, workers, inputs.config.evaluation
        path, longest = inputs.model_path, inputs.config.rollout.max_model_length
        self.collector = Collector.unscored(pool, path, longest)
        self.track = Track(self.settings.patience)
        for row in read_metrics(inputs.run_dir.metrics) if self.settings.every else ():
            # Later ones are made anew.
            if row["step"] <= steps:
                self.track.add(row["step"], row.get(self.selecting))

    @property
    def selecting(self) -> str:
        """The figure that the best adapter is chosen by."""
        return f"eval/{self.settings.validation}/accuracy"

    def due(self, step: int) -> bool:
        return bool(self.settings.every) and step % self.settings.every == 0

    def measure(self, step: int) -> dict[str, float | None]:
        """Returns the figures after a step, for its row, and writes the replies: None where nothing
        is measured."""
        if not self.settings.every:
            return {}
        names = [f"eval/{name}/{what}" for name in self.inputs.interim for what in FIGURES]
        if not self.due(step):
            return dict.fromkeys(names)
        tally, found = Tally(), dict[str, list[Sample]]()
        with self.workers.local():
            for name, prompts in self.prompts.items():
                found[name] = replies = self.ask(prompts, use_adapter=True)
                path = self.inputs.run_dir.interim_of(name, step, self.workers.rank)
                write_samples(path, replies, {"step": step})
                base = self.answers_of_the_base[name]
                flipped = [a.reply.answer != b for a, b in zip(replies, base, strict=True)]
                lengths = [len(one.rollout.completion_token_ids) for one in replies]
                formed = [one.reply.well_formed for one in replies]
                tally.mean(f"eval/{name}/accuracy", [one.is_right for one in replies])
                tally.mean(f"eval/{name}/well_formed", formed)
                tally.mean(f"eval/{name}/flips", flipped)
                tally.mean(f"eval/{name}/completion_tokens", lengths)
        figures = tally.over(self.workers)
        for name, replies in found.items():
            ends = self.interval_of(replies)
            figures |= {
                f"eval/{name}/{what}": end for what, end in zip(INTERVAL, ends, strict=True)
            }
        self.track.add(step, figures.get(self.selecting))
        return figures

    def interval_of(self, replies: Sequence[Sample]) -> tuple[float, float]:
        """Returns the 95 % interval of the accuracy over patients or images, of all workers'
        replies."""
        own = [(float(one.is_right), one.example.unit) for one in replies]
        pairs = [pair for part in self.workers.gather(own) for pair in part]
        # It brings SciPy, which is hidden while a worker imports what it trains with.
        from rarl.intervals import fraction_intervals95

        ((low, high),) = fraction_intervals95([([r for r, _ in pairs], [u for _, u in pairs])])
        return low, high

    @cached_property
    def prompts(self) -> dict[str, list[PreparedExample]]:
        """This worker's share of the questions, by data set."""
        config = self.inputs.config
        processor = load_processor(self.inputs.model_path)
        plan, most = evaluation_prompts(config.prompts), config.data.max_pixels
        return {
            name: [
                prepare_example(one, processor, plan, most)
                for one in ParquetRows(path).read(rows[self.workers.rank :: self.workers.size])
            ]
            for name, (path, rows) in self.inputs.interim.items()
        }

    @cached_property
    def answers_of_the_base(self) -> Mapping[str, list[str | None]]:
        return {
            name: [one.reply.answer for one in self.ask(prompts, use_adapter=False)]
            for name, prompts in self.prompts.items()
        }

    def ask(self, prompts: list[PreparedExample], use_adapter: bool) -> list[Sample]:
        config = self.inputs.config
        longest = self.settings.max_completion_tokens or config.rollout.max_completion_tokens
        sampling = SamplingSettings(1, 0.0, longest)
        pending = self.collector.submit(prompts, [0] * len(prompts), sampling, use_adapter)
        return flatten(pending.result())


class Track:
    """The best value so far, the last step that had it, whose checkpoint is kept, and how often
    nothing better came since."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.since = patience, 0
        self.best: float | None = None
        self.step: int | None = None

    def add(self, step: int, value: float | None) -> None:
        if value is None:
            return
        better = self.best is None or value > self.best
        self.since = 0 if better else self.since + 1
        if better or value == self.best:
            self.best, self.step = value, step

    @property
    def is_exhausted(self) -> bool:
        """Whether training has been without a better value for as long as it may."""
        return self.patience is not None and self.since >= self.patience


def read_interim(run_dir: RunDir, data: str, step: int) -> list[Sample]:
    """Returns what all workers wrote of a data set after a step, by question; nothing where that
    step was not measured."""
    first = run_dir.interim_of(data, step, rank=0)
    parts = (first, *sorted(first.parent.glob(f"{first.stem}-worker*.parquet")))
    found = [one for part in parts if part.is_file() for one in read_samples(part)]
    return sorted(found, key=lambda one: one.example.id)


def ended_early(track: Track, name: str | None, step: int) -> str:
    """Says why training has ended before its last step."""
    return (
        f"training ended after step {step}: {track.since} measurements on {name} without a better "
        f"one than {100 * (track.best or 0):.1f} after step {track.step}"
    )
