"""What a user can get wrong, through the command line: one line each, exit code 2, nothing left
behind. Two are told by processes of their own, the others by the same code in this one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rarl.config import load_config
from rarl.data.check import check_rows
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from rarl.training.run_dir import open_run_dir
from tests.runs import REPOSITORY, SHORT, assert_one_line_error, rarl, rarl_here

DEMO = "configs/demo.yaml"


def test_missing_configuration(tmp_path: Path) -> None:
    assert_one_line_error(rarl("train", tmp_path / "none.yaml"), "none.yaml: no such file")


def test_unknown_key_and_wrong_type() -> None:
    assert_one_line_error(
        rarl_here("train", DEMO, "rollout.grup_size=4"), "did you mean 'rollout.group_size'?"
    )
    assert_one_line_error(
        rarl_here("train", DEMO, "train.steps=many"), "train.steps", "valid integer"
    )


def test_missing_data_and_missing_column(tmp_path: Path) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    missing = tmp_path / "none.parquet"
    assert_one_line_error(
        rarl_here("train", DEMO, run, f"data.train={missing}"),
        f"data.train={missing}: no such file",
    )
    bare = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"id": ["1"]}), bare)
    other = f"run_dir={tmp_path / 'other'}"
    assert_one_line_error(
        rarl_here("train", DEMO, other, f"data.train={bare}"),
        "column 'image' is missing (it has: id)",
    )


@pytest.mark.slow
def test_a_corrupt_image_is_named_by_row(
    pool: SamplerPool, tmp_path: Path, examples: list[Example]
) -> None:
    damaged = tmp_path / "damaged.parquet"
    write_examples(
        damaged, [*examples[:3], replace(examples[3], image=b"\xff\xd8 broken"), *examples[4:]]
    )
    done = rarl_here(
        "train", DEMO, f"run_dir={tmp_path / 'run'}", f"data.train={damaged}", *SHORT, pool=pool
    )
    assert_one_line_error(done, "row 3:", "cannot be decoded", "data.on_bad_row=skip")


@pytest.mark.usefixtures("ray_cluster")
def test_a_wrong_answer_is_named_by_row(tmp_path: Path, examples: list[Example]) -> None:
    wrong = tmp_path / "wrong.parquet"
    write_examples(wrong, [replace(examples[0], answer="spleen"), *examples[1:]])
    with pytest.raises(UserError, match=r"row 0:.*'spleen' is not among the options"):
        check_rows(str(wrong), "fail")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_where_one_is_required(tmp_path: Path) -> None:
    done = rarl("train", "configs/recipes/qwen2vl_2b/rarl.yaml", f"run_dir={tmp_path / 'run'}")
    assert_one_line_error(done, "device=cuda, but PyTorch sees no GPU here")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_more_samplers_than_the_machine_has_room_for_are_an_error_at_once(tmp_path: Path) -> None:
    count = 10 * (os.cpu_count() or 1)
    done = rarl_here(
        "train",
        DEMO,
        f"run_dir={tmp_path / 'run'}",
        *SHORT,
        f"rollout.num_actors={count}",
    )
    assert_one_line_error(
        done, "no room in the Ray cluster", f"rollout.num_actors={count}", "CPU", "lower that key"
    )


def test_no_model(tmp_path: Path) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    assert_one_line_error(
        rarl_here("train", DEMO, run, "model.path=/no/such/model"), "model.path=/no/such/model"
    )
    hub = rarl_here("train", DEMO, run, "model.path=nobody/no-such-model")
    assert_one_line_error(hub, "model.path=nobody/no-such-model: not in the local cache")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(
        rarl_here("train", DEMO, run, f"model.path={tmp_path / 'empty'}"), "holds no config.json"
    )


def test_a_run_directory_with_another_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(REPOSITORY / DEMO, [f"run_dir={run}"])
    open_run_dir(config)
    # nothing is there yet to be lost
    open_run_dir(load_config(REPOSITORY / DEMO, [f"run_dir={run}", "seed=3"]))
    (run / "metrics.jsonl").touch()
    assert_one_line_error(
        rarl_here("train", DEMO, f"run_dir={run}", "seed=3", "train.steps=7"),
        "already holds a run with another configuration (train.steps is 120 there, 7 here)",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert_one_line_error(
        rarl_here("train", DEMO, f"run_dir={tmp_path / 'mine'}"),
        "not empty and not a run directory",
    )
    file = tmp_path / "file"
    file.write_text("")
    assert_one_line_error(
        rarl_here("train", DEMO, f"run_dir={file}"), "cannot be used as run directory"
    )


def test_evaluating_what_is_no_run(tmp_path: Path) -> None:
    done = rarl_here("eval", tmp_path)
    assert_one_line_error(
        done, "holds neither config.yaml (a run directory) nor config.json (a model)"
    )


def test_a_plan_needs_neither_gpu_nor_model() -> None:
    done = rarl_here("plan", "configs/recipes/qwen2vl_2b/rarl.yaml")
    assert done.returncode == 0, done.stderr
    assert "estimated GPU memory in GiB, a100-40g" in done.stdout
    small = rarl_here("plan", "configs/recipes/qwen2vl_2b/rarl.yaml", "--gpu-gib", "12")
    assert_one_line_error(small, "the trainer needs", "leaves no cache for keys and values")
