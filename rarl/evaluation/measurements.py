"""Measuring models on data sets, in one way or several: another prompt, a control, samples, the
likelihood of options.

Every finished part is on disk, so the same command after an interruption does only what is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from ray.data import Dataset

from rarl.commands.session import Session, Setup, open_session, resolve
from rarl.config import Config
from rarl.data.controls import Control, rows_with_other_images
from rarl.data.parquet import ParquetRows
from rarl.data.stream import ordered_stream
from rarl.display import Display
from rarl.evaluation.options import save_option_scores, score_options, summarise_options
from rarl.evaluation.predict import Asking, measure
from rarl.evaluation.prediction import Prediction, load_predictions
from rarl.evaluation.self_consistency import Sampled, self_consistency
from rarl.evaluation.summary import difference, summarise
from rarl.files import write_text
from rarl.grpo.policy import read_adapter
from rarl.prompts import PromptPlan, evaluation_prompts


@dataclass(frozen=True)
class Way:
    """One way to measure. `prompt` is a family, None the run's own; several `samples` are drawn at
    the temperature of training; `options` asks for the likelihood of the options instead of
    replies."""

    prompt: str | None = None
    control: Control | None = None
    samples: int = 1
    options: bool = False

    def suffix(self, own_prompt: str) -> str:
        """The end of the names of its files: nothing for the run's own measurement."""
        parts = [
            self.prompt if self.prompt != own_prompt else None,
            self.control,
            f"samples{self.samples}" if self.samples > 1 else None,
            "options" if self.options else None,
        ]
        return "".join(f"-{part}" for part in parts if part)


def evaluate_only(
    config: Config,
    made_with: Config,
    ways: list[Way],
    display: Display,
    adapter: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures the base model of a configuration, and the run directory's adapter, or else
    `adapter`, where there is one. `made_with` is the run's configuration; `config` may have other
    data, another `prompts.eval` or `judge`. Returns a summary for each way, by its suffix, and
    writes it beside the replies."""
    ways = [replace(way, prompt=way.prompt or config.prompts.eval) for way in ways]
    for way in ways:
        prompts_of(config, way)  # an unknown family is an error now, not after the engines' start
    setup = resolve(config, made_with)
    trained = setup.run_dir.adapter if setup.run_dir.adapter.is_dir() else adapter
    summaries = {}
    with open_session(setup, display, setup.eval_data) as live:
        if trained is not None:
            live.pool.publish(config.train.steps, *read_adapter(trained))
        for way in ways:
            suffix = way.suffix(setup.own_prompt) + setup.judged
            summary = measure_options if way.options else measure_both
            summaries[suffix] = summary(setup, live, way, trained is not None, display)
            write_text(
                setup.evaluation / f"summary{suffix}.json",
                json.dumps(summaries[suffix], indent=2) + "\n",
            )
    return summaries


def measure_both(
    setup: Setup, live: Session, way: Way, has_adapter: bool, display: Display
) -> dict[str, Any]:
    base = measure_all(setup, live, "base", display, way)
    trained = measure_all(setup, live, "trained", display, way) if has_adapter else {}
    return summary_of(base, trained, live)


def measure_all(
    setup: Setup, live: Session, label: str, display: Display, way: Way | None = None
) -> dict[str, list[Prediction]]:
    """The predictions of "base" or "trained" by data set, from disk where they are complete. The
    adapter is the one that the engines hold."""
    way = way or Way()
    config = setup.config
    asking = Asking(
        max_tokens=config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens,
        max_model_length=config.rollout.max_model_length,
        use_adapter=label != "base",
        samples=way.samples,
        temperature=config.rollout.temperature if way.samples > 1 else 0.0,
        seed=config.seed,
        show_image=way.control != "text",
    )
    results = {}
    for name in setup.eval_data:
        path = (
            setup.evaluation / f"{label}-{name}{way.suffix(setup.own_prompt)}{setup.judged}.parquet"
        )
        if path.exists():
            results[name] = load_predictions(path)
            if live.judge is None or all(
                p.judge_status in ("scored", "unparsable") for p in results[name]
            ):
                continue
        stream = evaluation_stream(setup, live, name, way)
        with display.counting(
            f"measuring {label} on {name}{describe(way)}", stream.count()
        ) as advance:
            results[name] = measure(stream, live.pool, asking, live.judge, path, advance)
    return results


def measure_options(
    setup: Setup, live: Session, way: Way, has_adapter: bool, display: Display
) -> dict[str, Any]:
    """By label and data set."""
    summary: dict[str, Any] = {}
    for label in ("base", "trained") if has_adapter else ("base",):
        for name in setup.eval_data:
            stream = evaluation_stream(setup, live, name, way)
            with display.counting(
                f"scoring {label}'s options on {name}", stream.count()
            ) as advance:
                scores = score_options(stream, live.pool, label != "base", advance)
            save_option_scores(
                scores, setup.evaluation / f"{label}-{name}{way.suffix(setup.own_prompt)}.parquet"
            )
            summary.setdefault(label, {})[name] = summarise_options(scores)
    return summary


def evaluation_stream(setup: Setup, live: Session, name: str, way: Way) -> Dataset:
    """The data set's checked rows, asked in this way. In memory, so that it can be counted before
    it is read."""
    rows = live.checked[name].good[: setup.config.evaluation.max_examples]
    prompts = prompts_of(setup.config, way)
    preparer = setup.preparer(setup.eval_data[name], prompts, blank=way.control == "blank")
    image_rows = None
    if way.control == "shuffled":
        image_ids = np.array(ParquetRows(setup.eval_data[name]).column("image_id"))[rows]
        image_rows = rows[rows_with_other_images(image_ids.tolist(), setup.config.seed)]
    return ordered_stream(preparer, rows, image_rows).materialize()


def prompts_of(config: Config, way: Way) -> PromptPlan:
    """Raises UserError for a family that there is not."""
    return evaluation_prompts(
        config.prompts.model_copy(update={"eval": way.prompt or config.prompts.eval})
    )


def describe(way: Way) -> str:
    words = [
        f"prompt {way.prompt}" if way.prompt else None,
        f"control {way.control}" if way.control else None,
    ]
    words += [f"{way.samples} samples" if way.samples > 1 else None]
    known = ", ".join(word for word in words if word)
    return f" ({known})" if known else ""


def summary_of(
    base: dict[str, list[Prediction]], trained: dict[str, list[Prediction]], live: Session
) -> dict[str, Any]:
    """Where several samples were drawn for a question, the first counts, and `self_consistency`
    tells of all."""
    first = {
        label: {name: first_samples(p) for name, p in of.items()}
        for label, of in labelled(base, trained)
    }
    summary: dict[str, Any] = {
        "base": {name: summarise(predictions) for name, predictions in first["base"].items()},
        "trained": {name: summarise(predictions) for name, predictions in first["trained"].items()},
        "difference": {
            name: difference(first["base"][name], first["trained"][name]) for name in trained
        },
        "skipped_rows": {name: len(rows.bad) for name, rows in live.checked.items()},
    }
    for label, of in labelled(base, trained):
        for name, predictions in of.items():
            if any(p.sample for p in predictions):
                summary[label][name]["self_consistency"] = summarise_samples(predictions)
    return summary


def summarise_samples(predictions: list[Prediction]) -> dict[str, Any]:
    """The majority's accuracy, the agreement, and what abstaining gains."""
    questions = []
    # samples of a question lie together
    for _, group in groupby(predictions, key=lambda p: p.example_id):
        replies = list(group)
        questions.append(
            Sampled([p.answer for p in replies], replies[0].reference, replies[0].options)
        )
    found = self_consistency(questions)
    curve = found.abstention
    return {
        "n": found.n,
        "samples": len(predictions) / found.n,
        "accuracy": found.accuracy,
        "agreement": found.agreement,
        "abstention": dict(zip(map(str, curve.coverage), curve.accuracy, strict=True)),
        "aurc": curve.aurc,
    }


def labelled(base: Any, trained: Any) -> list[tuple[str, dict[str, list[Prediction]]]]:
    return [("base", base), ("trained", trained)]


def first_samples(predictions: list[Prediction]) -> list[Prediction]:
    return [p for p in predictions if not p.sample]
