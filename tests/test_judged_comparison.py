"""A comparison with a judge of its own and claims, from its file to its tables and report. The
replies are written here, in place of training and sampling; all else is real, the judge too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rarl.commands.compare import compare
from rarl.commands.resolve import Setup
from rarl.commands.session import Session
from rarl.config import Config, load_config
from rarl.data.check import CheckedRows
from rarl.data.parquet import ParquetRows, write_examples
from rarl.evaluation.measurements import Measurement
from rarl.evaluation.report import write_report
from rarl.judge.client import open_judge
from rarl.training.run_dir import open_run_dir
from tests.records import example, reply_to, write_measurement
from tests.runs import REPOSITORY, rarl_here

RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"
QUESTIONS = 40
RIGHT = {"base": 10, "sft": 20, "rarl": 36}  # of QUESTIONS
ASKED = [example(i, images=(b"x",), rationale="The lung is clear.") for i in range(QUESTIONS)]


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """SFT and RARL, measured on their own data set and on another."""
    for name in ("train", "own", "other"):
        # Each file has another content, or measuring on what was trained on would be refused.
        write_examples(tmp_path / f"{name}.parquet", [replace(one, split=name) for one in ASKED])
    data = f"{{own: {tmp_path / 'own.parquet'}}}"
    claim = {"sentence": 7, "model": "rarl", "against": "sft", "metric": "judge_correctness"}
    tree: dict[str, Any] = {
        "out": str(tmp_path / "out"),
        "seeds": [0],
        "models": {
            "sft": {"title": "SFT", "recipe": str(RECIPES / "sft.yaml")},
            "rarl": {"title": "RARL", "recipe": str(RECIPES / "rarl.yaml")},
        },
        "reference": "rarl",
        "overrides": [
            f"data.train={tmp_path / 'train.parquet'}",
            f"data.eval={data}",
            *("rewards.judge=null", "prompts.eval=plain"),
        ],
        "data": {"other": str(tmp_path / "other.parquet")},
        "judged_by": {"backend": "rules"},
        "claims": [
            claim | {"says": "better by 7.78", "data": ["own", "other"], "claimed": 7.78},
            {"sentence": 1, "says": "Models are coming."},
            claim | {"says": "in less time", "metric": "train_seconds", "less": True},
        ],
    }
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def write_run(config: Config, model: str) -> None:
    """What a training leaves, as far as it is read later, and the replies to both data sets."""
    run = open_run_dir(config)
    run.adapter.mkdir()
    seconds = {"train": 50.0 if model == "rarl" else 20.0}
    run.summary.write_text(json.dumps({"base": {}, "trained": {}, "seconds": seconds}))
    for label in ("base", "trained"):
        right = RIGHT["base" if label == "base" else model]
        replies = [
            reply_to(
                replace(one, images=()),
                "yes",
                wording="plain/0",
                text=f"<think>The lung is clear.</think><answer>{'yes' if i < right else 'no'}"
                "</answer>",
            )
            for i, one in enumerate(ASKED)
        ]
        for data in ("own", "other"):
            write_measurement(run.evaluation, Measurement(label, data, "plain"), replies)


def test_every_model_is_judged_and_the_claims_are_answered(
    comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def open_session(
        setup: Setup, display: Any, data: dict[str, str], engines: bool, **_: Any
    ) -> Iterator[Session]:
        assert not engines, "all replies are there"
        judge = open_judge(setup.config.judge, None)
        good = {name: np.arange(len(ParquetRows(path))) for name, path in data.items()}
        yield Session(None, judge, {name: CheckedRows(rows, []) for name, rows in good.items()})

    monkeypatch.setattr("rarl.commands.evaluate.open_session", open_session)
    done: list[str] = []

    def run(arguments: list[str]) -> int:
        done.append(arguments[0])
        if arguments[0] == "train":
            config = load_config(arguments[1], arguments[2:])
            write_run(config, Path(arguments[1]).stem)
            return 0
        told = rarl_here(*arguments)
        assert told.returncode == 0, told.stdout + told.stderr
        return 0

    out = compare(comparison, [], lambda _: None, run)
    assert done == ["train", "eval", "eval"] * 2
    results = (out / "results.md").read_text()
    claims = results.split("## What is claimed")[1].split("\n## ")[0]
    first, second, third = (row.split("|") for row in claims.strip().splitlines()[-3:])
    assert [cell.strip() for cell in first[3:5]] == ["+7.78 points", "+26.7 points"], (
        "right replies have correctness 3 and wrong ones 1: 16 of 40 more, by 2 of the scale of 3"
    )
    assert "confirmed" in first[7] and "no number answers it" in second[7]
    assert "+150.0 %" in third[4] and "contradicted" in third[7]
    for data in ("own", "other"):
        table = results.split(f"## {data}\n")[1]
        line = next(one for one in table.splitlines() if one.startswith("| RARL "))
        assert line.count(" 90.0 [") == 3, "accuracy, closed questions, and as judged"
    page = write_report(out).read_text()
    assert 'id="claims"' in page and "Judged accuracy" in page
    assert compare(comparison, [], lambda _: None, run) == out
    assert len(done) == 6, "nothing is judged twice"
