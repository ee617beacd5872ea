"""Finished runs without training, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rarl.config import dump_config, load_config
from rarl.data.parquet import write_examples
from rarl.evaluation.prediction import Prediction, load_predictions, save_predictions
from rarl.files import write_text
from rarl.schema import Example
from rarl.tiny.dataset import draw_examples
from rarl.training.run_dir import RunDir
from tests.runs import REPOSITORY

HOSTILE = "</script><!--<script>alert(1)</script>\u2028<img src=x onerror=\"document.title='owned'\"> & {{ 7*7 }}"
STEPS = 30


def write_run(
    folder: Path,
    data: dict[str, list[Example]],
    accuracy: float,
    seed: int = 0,
    *overrides: str,
    trained: bool = True,
) -> RunDir:
    """A run directory as `rarl train` leaves it, with made-up replies; `data` is measured, its
    first set trained on."""
    files = {name: folder.parent / "data" / f"{name}.parquet" for name in data}
    for name, path in files.items():
        if not path.exists():
            write_examples(path, data[name])
    sets = "{" + ", ".join(f"{name}: {path}" for name, path in files.items()) + "}"
    train = f"data.train={next(iter(files.values()))}"
    config = load_config(
        REPOSITORY / "configs/demo.yaml",
        [f"run_dir={folder}", f"seed={seed}", train, f"data.eval={sets}", *overrides],
    )
    run_dir = RunDir(folder)
    write_text(run_dir.config, dump_config(config))
    rows = [metrics_row(step, config.method) for step in range(1, STEPS + 1)] if trained else []
    write_text(run_dir.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    for label, share in (("base", 0.4), ("trained", accuracy)) if trained else (("base", 0.4),):
        for name, examples in data.items():
            rng = np.random.default_rng([seed, len(label), round(100 * share)])
            replies = [
                reply_to(example, bool(rng.random() < share), rng.random()) for example in examples
            ]
            save_predictions(replies, folder / "evaluation" / f"{label}-{name}.parquet")
    if trained:
        write_text(run_dir.summary, json.dumps({"seconds": {"train": 60.0}, "skipped_rows": {}}))
    return run_dir


def reply_to(example: Example, is_right: bool, reasoning: float) -> Prediction:
    answer = example.answer if is_right else "something else"
    return Prediction(
        example_id=example.id,
        image_id=example.image_id,
        answer_type=example.answer_type,
        question=example.question,
        reference=example.answer,
        wording="plain/0",
        reply=f"<think>I see {example.organ}.</think><answer>{answer}</answer>",
        answer=answer,
        well_formed=True,
        correct=is_right,
        completion_tokens=12,
        reasoning=round(reasoning, 3),
    )


def metrics_row(step: int, method: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": step,
        "loss": 1.0 / step,
        "grad_norm": 0.1,
        "completion_tokens": 20.0 + step % 3,
    }
    if method == "grpo":
        row |= {
            "reward/mean": 0.02 * step,
            "reward/format": 0.9,
            "reward/accuracy": 0.4 + 0.01 * step,
        }
        row |= {"reward/judge": None, "kl": 0.001 * step, "sampler_mismatch": 1e-7 * (1 + step % 2)}
    phases = {
        "data": 0.1,
        "rollout": 0.5,
        "reward": 0.1,
        "update": 0.4,
        "publish": 0.1,
        "other": 0.0,
    }
    return (
        row
        | {f"seconds/{name}": seconds for name, seconds in phases.items()}
        | {"seconds/step": 1.2}
    )


def spoil(
    path: Path, change: Callable[[Prediction], dict[str, Any]], places: Iterable[int]
) -> None:
    """Other fields for some predictions of a file."""
    predictions = load_predictions(path)
    for place in places:
        predictions[place] = replace(predictions[place], **change(predictions[place]))
    save_predictions(predictions, path)


def draw_data() -> dict[str, list[Example]]:
    """Two data sets of different sizes; the second's questions are open."""
    seen = draw_examples("seen", 60, seed=3, split="test")
    unseen = [
        replace(e, answer_type="open", options=None)
        for e in draw_examples("unseen", 45, seed=3, split="test")
    ]
    return {"seen": seen, "unseen": unseen}


def write_comparison(out: Path, data: dict[str, list[Example]]) -> Path:
    """Two models with two seeds, one that is not finished, hostile text in the first examples, an
    unfit judge."""
    for seed in (0, 1):
        write_run(out / f"sft-{seed}", data, 0.6, seed, "method=sft", "prompts.eval=plain")
        write_run(out / f"rarl-{seed}", data, 0.8, seed, "prompts.eval=reason")
    write_run(out / "rl-0", data, 0.7, 0, trained=False)
    hostile: dict[str, Any] = {
        "reply": HOSTILE,
        "answer": None,
        "well_formed": False,
        "correct": False,
    }
    hostile |= {
        "judge_status": "scored",
        "judge_correctness": 1.0,
        "judge_explanation": 0.5,
        "judge_reason": HOSTILE,
    }
    spoil(out / "rarl-0/evaluation/trained-seen.parquet", lambda _: hostile, range(2))
    failures = [f"position: 9 points <b>apart</b> {HOSTILE}", "verbosity"]
    (out / "judge-card.json").write_text(json.dumps({"fit": False, "failures": failures}))
    return out


def replies(out: Path, run: str, data_set: str, label: str = "trained") -> list[Prediction]:
    return load_predictions(out / run / "evaluation" / f"{label}-{data_set}.parquet")
