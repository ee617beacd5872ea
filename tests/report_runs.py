"""Finished runs without training, for the tests of the report."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rarl.config import dump_config, load_config
from rarl.data.parquet import write_examples
from rarl.evaluation.measurements import own_measurement
from rarl.files import write_text
from rarl.samples import Sample
from rarl.schema import Example, Verdict
from rarl.tiny.dataset import draw_examples
from rarl.training.run_dir import RunDir
from tests.records import read_measurement, reply_to, spoil, write_measurement
from tests.runs import REPOSITORY

HOSTILE = (
    "</script><!--<script>alert(1)</script>\u2028"
    "<img src=x onerror=\"document.title='owned'\"> & {{ 7*7 }}"
)
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
                right_or_wrong(example, bool(rng.random() < share), rng.random())
                for example in examples
            ]
            write_measurement(folder / "evaluation", own_measurement(config, label, name), replies)
    if trained:
        write_text(run_dir.summary, json.dumps({"seconds": {"train": 60.0}, "skipped_rows": {}}))
    return run_dir


def right_or_wrong(asked: Example, is_right: bool, reasoning: float) -> Sample:
    answer = asked.answer if is_right else "something else"
    text = f"<think>I see {asked.organ}.</think><answer>{answer}</answer>"
    grades = {"correct": is_right, "reasoning": round(reasoning, 3)}
    return reply_to(replace(asked, images=()), answer, grades, text=text, tokens=12)


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
        "save": 0.2,
        "other": 0.0,
    }
    return (
        row
        | {f"seconds/{name}": seconds for name, seconds in phases.items()}
        | {"seconds/step": 1.4}
    )


@cache
def draw_data() -> dict[str, list[Example]]:
    """Two data sets of different sizes; the second's questions are open."""
    seen = draw_examples("seen", 60, seed=3, split="test")
    unseen = [
        replace(e, answer_type="open", options=None)
        for e in draw_examples("unseen", 45, seed=3, split="test")
    ]
    return {"seen": seen, "unseen": unseen}


def write_sites(folder: Path) -> RunDir:
    """A run whose base is as often right everywhere, and that is trained to fail at Lakeside; the
    site Harbour has few images. Two of three questions ask for perception."""
    kinds = ("PRES", "ABN", "SIZE")
    rng = np.random.default_rng(5)
    sites = {
        image: str(
            rng.choice(["Lakeside", "St. Mary", "Uni", "Harbour"], p=[0.3, 0.33, 0.32, 0.05])
        )
        for image in sorted({one.image_id for one in draw_examples("seen", 300, 3, "test")})
    }
    asked = [
        replace(one, site=sites[one.image_id], extra={"question_type": kinds[place % 3]})
        for place, one in enumerate(draw_examples("seen", 300, 3, "test"))
    ]
    run = write_run(folder, {"seen": asked}, 0.8, 0, "data.allow_same_files=true")
    key = own_measurement(load_config(run.config), "trained", "seen")
    replies = [
        right_or_wrong(one, bool(rng.random() < (0.5 if one.site == "Lakeside" else 0.9)), 0.5)
        for one in asked
    ]
    write_measurement(folder / "evaluation", key, replies)
    return run


def write_comparison(out: Path, data: dict[str, list[Example]]) -> Path:
    """Two models with two seeds, one that is not finished, hostile text in the first examples, an
    unfit judge."""
    for seed in (0, 1):
        write_run(out / f"sft-{seed}", data, 0.6, seed, "method=sft", "prompts.eval=plain")
        write_run(out / f"rarl-{seed}", data, 0.8, seed, "prompts.eval=reason")
    write_run(out / "rl-0", data, 0.7, 0, trained=False)

    def hostile(sample: Sample) -> Sample:
        verdict = Verdict("scored", 1.0, 0.5, 0.5, 0.5, HOSTILE)
        return reply_to(sample.example, None, text=HOSTILE, verdict=verdict)

    key = own_measurement(load_config(out / "rarl-0/config.yaml"), "trained", "seen")
    spoil(out / "rarl-0/evaluation", key, hostile, range(2))
    failures = [f"position: 9 points <b>apart</b> {HOSTILE}", "verbosity"]
    (out / "judge-card.json").write_text(json.dumps({"fit": False, "failures": failures}))
    return out


def replies(out: Path, run: str, data_set: str, label: str = "trained") -> list[Sample]:
    config = load_config(out / run / "config.yaml")
    return read_measurement(out / run / "evaluation", own_measurement(config, label, data_set))
