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
from rarl.training.run_dir import RunDir, changes_of, open_run_dir
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
        damaged, [*examples[:3], replace(examples[3], images=(b"\xff\xd8 broken",)), *examples[4:]]
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
    assert_one_line_error(
        done, "device=cuda, but this environment has vLLM's CPU build", "make gpu"
    )
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


def opened(run: Path, *overrides: str) -> RunDir:
    return open_run_dir(load_config(REPOSITORY / DEMO, [f"run_dir={run}", *overrides]))


def measured(run: Path) -> list[str]:
    """A measurement of the base as it lies in a run directory, and the folders that have one."""
    (run / "evaluation" / "model=base").mkdir(parents=True, exist_ok=True)
    return sorted(path.parent.name for path in run.glob("evaluation*/model=base"))


@pytest.mark.parametrize(
    ("override", "anew"),
    [
        ("rollout.max_model_length=4096", False),
        ("train.learning_rate=0.1", False),
        ("rewards.judge=null", False),
        ("method=sft", False),
        ("prompts.train={none: 1}", False),
        ("data.eval={}", False),
        ("data.eval.further=further.parquet", False),
        ("data.eval.phantoms-seen=other.parquet", True),
        ("seed=3", True),
        ("evaluation.max_examples=3", True),
        ("data.max_pixels=3000", True),
        ("prompts.templates=rarl/prompts.yaml", True),
    ],
)
def test_without_a_finished_step_a_run_directory_takes_another_configuration(
    tmp_path: Path, override: str, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has measured is not paid for twice, or is not mixed with what it is not."""
    monkeypatch.chdir(REPOSITORY)
    opened(tmp_path / "run")
    measured(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").touch()
    again = opened(tmp_path / "run", override)
    assert again.evaluation.exists() is not anew
    assert len(again.notes) == anew
    if anew:
        told = f"measured anew, since {override.split('=')[0]} is "
        assert again.notes[0].startswith(told) and "evaluation.1" in again.notes[0]
        assert measured(tmp_path / "run") == ["evaluation", "evaluation.1"]
    assert load_config(again.config) == load_config(
        REPOSITORY / DEMO, [f"run_dir={tmp_path / 'run'}", override]
    )


def test_data_that_a_job_brings_along_are_the_same_wherever_ray_unpacks_them(
    tmp_path: Path,
) -> None:
    def changes(path: str) -> list[str]:
        config = load_config(DEMO, [f"run_dir={tmp_path}", f"data.train={path}"])
        if not (tmp_path / "config.yaml").exists():
            open_run_dir(config)
        return [one.key for one in changes_of(RunDir(tmp_path), config)]

    there = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_"
    assert changes(f"{there}0a1/mine/train.parquet") == []
    assert changes(f"{there}77f/mine/train.parquet") == []
    assert changes(f"{there}77f/other/train.parquet") == ["data.train"]
    assert changes("/mine/train.parquet") == ["data.train"]


def test_another_text_of_the_templates_is_another_configuration(tmp_path: Path) -> None:
    templates, run = tmp_path / "mine.yaml", tmp_path / "run"
    for number, text in enumerate(("Look.", "Look closely.")):
        templates.write_text(f"mine: {{form: think, wordings: [{text}]}}")
        made = opened(run, f"prompts.templates={templates}", "prompts.eval=mine")
        assert text in made.templates.read_text()
        assert len(measured(run)) == 1 + number
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    templates.write_text("mine: {form: think, wordings: [Do not look.]}")
    with pytest.raises(UserError, match=r"the text in prompts\.yaml"):
        opened(run, f"prompts.templates={templates}", "prompts.eval=mine")


def test_a_run_takes_further_data_sets_and_steps_and_no_other_configuration(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    opened(run)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    place = str(tmp_path / "further.parquet")
    further = [f"data.eval.further={place}"]
    opened(run, *further)
    assert "further" not in load_config(opened(run).config).data.eval, "nothing was measured of it"
    assert load_config(opened(run, *further).config).data.eval["further"] == place
    assert load_config(opened(run, *further, "train.steps=150").config).train.steps == 150
    (run / "evaluation" / "model=base" / "data=further").mkdir(parents=True)
    for override, message in [
        ("train.steps=149", "train.steps is 150 there, 149 here"),
        ("data.eval.further=other.parquet", f"data.eval.further is '{place}' there"),
        ("data.eval={}", f"data.eval.further is '{place}' there, None here"),
        ("rewards.judge=null", "rewards.judge"),
    ]:
        with pytest.raises(UserError, match="already holds a run with another") as caught:
            opened(run, *further, "train.steps=150", override)
        assert message in str(caught.value)
    measuring = load_config(REPOSITORY / DEMO, [f"run_dir={run}", *further, "train.steps=151"])
    with pytest.raises(UserError, match="already holds a run with another"):
        open_run_dir(measuring, trains=False)


def test_a_finished_run_without_checkpoints_cannot_be_made_longer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    opened(run).adapter.mkdir()
    with pytest.raises(UserError, match=r"finished its 120 steps and has no checkpoint to go on"):
        opened(run, "train.steps=121")
    assert (run / "adapter").is_dir()


def test_a_run_directory_with_another_configuration(tmp_path: Path) -> None:
    run = tmp_path / "run"
    opened(run, "seed=3")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
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
