"""Federations: what their file may say, what is left to do, what crosses a site's border, and a
whole one that is killed and continued."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rarl.adapters.origin import WEIGHTS, read_origin
from rarl.commands.compare import Task
from rarl.commands.federate import FoundFederation, federate, read_plan
from rarl.config import Config, dump_config, load_config
from rarl.data.mixture import read_mixture
from rarl.data.parquet import ParquetRows, write_examples
from rarl.errors import UserError
from rarl.evaluation.lines import read_compared
from rarl.files import file_hash
from rarl.rollout.pool import SamplerPool
from rarl.schema import Example
from rarl.training.run_dir import RunDir
from tests.runs import RARL, REPOSITORY, environment, rarl, rarl_here
from tests.test_merge import write_run

SMALL: dict[str, Any] = {
    "recipe": str(REPOSITORY / "configs/recipes/tiny/sft.yaml"),
    "sites": {"north": {"data": "north.parquet"}, "south": {"data": "south.parquet"}},
    "eval": {"both": "both.parquet"},
    "rounds": 2,
    "together": True,
    "overrides": ["train.steps=2", "train.prompts_per_step=4", "rollout.num_actors=1"],
}


@pytest.fixture
def small(tmp_path: Path, examples: list[Example]) -> Path:
    """A federation's file, and the data that it names, beside it."""
    for name, rows in (("north", slice(8)), ("south", slice(12, 20)), ("both", slice(20, 24))):
        write_examples(tmp_path / f"{name}.parquet", examples[rows])
    return write(tmp_path)


def write(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"out": "out"} | changes, sort_keys=False))
    return path


def wanted_by(task: Task) -> Config:
    """Returns the configuration of the run that a task is about."""
    prepare: Any = task.prepare
    config: Config = prepare.args[0]
    return config


def train(folder: Path, plan: FoundFederation, what: list[str], model_path: str, seed: int) -> None:
    """Leaves a run directory as the training `what` leaves it, with another adapter."""
    write_run(folder, model_path, seed, tokens=10 + seed)
    (config,) = (wanted_by(one) for one in plan.tasks() if one.arguments[1:] == what)
    RunDir(folder).config.write_text(dump_config(config))
    RunDir(folder).summary.write_text("{}")


def test_the_federation_that_ships_is_whole() -> None:
    plan = read_plan(REPOSITORY / "configs/federate/tiny.yaml", ["out=/nowhere", "seeds=[0]"])
    titles = [task.title for task in plan.tasks()]
    assert titles[:4] == [
        "north, round 1, seed 0: training",
        "south, round 1, seed 0: training",
        "merged, round 1, seed 0: merging",
        "merged, round 1, seed 0: measuring",
    ]
    assert titles[-3:] == [
        "north alone, seed 0",
        "south alone, seed 0",
        "all data together, seed 0",
    ]


def test_each_round_begins_where_the_one_before_ended(small: Path, tmp_path: Path) -> None:
    plan = read_plan(small, ["train.learning_rate=0.01"])
    out = tmp_path / "out"
    tasks = {task.title: task for task in plan.tasks()}
    configs = {title: wanted_by(task) for title, task in tasks.items()}
    first, second = (configs[f"north, round {turn}, seed 0: training"] for turn in (1, 2))
    assert first.model.adapter is None
    assert second.model.adapter == str(out / "round-1-merged-0")
    assert first.data.train == second.data.train == str(tmp_path / "north.parquet")
    assert first.train.learning_rate == 0.01 and first.data.eval == {
        "both": str(tmp_path / "both.parquet")
    }
    alone, together = configs["north alone, seed 0"], configs["all data together, seed 0"]
    assert (first.train.steps, alone.train.steps, together.train.steps) == (2, 4, 8)
    assert alone.model.adapter is None and together.model.adapter is None
    merging = tasks["merged, round 2, seed 0: merging"].arguments
    runs = [str(out / f"round-2-{site}-0") for site in ("north", "south")]
    assert merging == ["merge", *runs, "--out", str(out / "round-2-merged-0/adapter")]
    measuring = tasks["merged, round 2, seed 0: measuring"]
    assert measuring.arguments == ["eval", str(out / "round-2-merged-0")]
    assert configs[measuring.title].data.train is None


def test_seeds_are_a_list_or_numbers_with_commas(small: Path) -> None:
    for override in ("seeds=0,1", "seeds=[0, 1]"):
        assert read_plan(small, [override]).federation.seeds == [0, 1]
    with pytest.raises(UserError, match="seeds=a: expected numbers, such as seeds=0,1,2"):
        read_plan(small, ["seeds=a"])


def test_a_merged_folder_without_an_adapter_follows_what_is_measured_now(
    small: Path, tmp_path: Path
) -> None:
    title = "merged, round 1, seed 0: measuring"
    for names in (["both"], ["both", "other"]):
        plan = read_plan(write(tmp_path, eval=dict.fromkeys(names, "both.parquet")), [])
        [task] = [one for one in plan.tasks() if one.title == title]
        task.prepare()
        config = load_config(RunDir(Path(task.arguments[1])).config)
        assert list(config.data.eval) == names


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"merge": "svd"}, ["--rank", "8"]),
        ({"validation": "both.parquet"}, ["--validation", "HERE/both.parquet"]),
        (
            {
                "sites": {
                    "north": {"data": "north.parquet", "weight": 3},
                    "south": {"data": "south.parquet", "weight": 1},
                }
            },
            ["--weights", "3.0,1.0"],
        ),
    ],
)
def test_how_the_file_says_to_merge(
    small: Path, tmp_path: Path, changes: dict[str, Any], arguments: list[str]
) -> None:
    plan = read_plan(write(tmp_path, **changes), [])
    wanted = [one.replace("HERE", str(tmp_path)) for one in arguments]
    assert plan.merging(0, 1)[2:-2] == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rouns": 2}, "unknown key 'rouns'; did you mean 'rounds'?"),
        ({"sites": {"a": {"data": "north.parquet"}}}, "sites"),
        (
            {"sites": {"a": {"data": "north.parquet"}, "merged": {"data": "south.parquet"}}},
            "sites.merged: this is what the adapter of all is called; rename it",
        ),
        (
            {"sites": {"a": {"data": "north.parquet", "weight": 1}, "b": {"data": "x"}}},
            "sites: either all of them have a weight or none has",
        ),
        (
            {"sites": {"a": {"data": "north.parquet"}, "b": {"data": "nowhere.parquet"}}},
            "sites.b.data=HERE/nowhere.parquet: no such file or folder",
        ),
        ({"validation": "nowhere.parquet"}, "validation=HERE/nowhere.parquet: no such file"),
        ({"eval": {"x": "nowhere.parquet"}}, "eval.x=HERE/nowhere.parquet: no such file"),
        ({"overrides": ["train.stesp=3"]}, "did you mean 'train.steps'"),
        ({"recipe": "nowhere.yaml"}, "HERE/nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    small: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message.replace("HERE", str(tmp_path)))):
        read_plan(write(tmp_path, **changes), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "seed=3: a federation sets seed itself, from `seeds`"),
        ("model.adapter=x", "model.adapter=x: a federation sets model.adapter itself"),
        ("data.train=x", "data.train=x: a federation sets data.train itself, from `sites`"),
    ],
)
def test_keys_that_a_federation_sets_are_refused(small: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_plan(small, [override])


def test_a_recipe_is_no_federation(small: Path) -> None:
    with pytest.raises(UserError, match=r"sft\.yaml: has no `sites`"):
        read_plan(Path(SMALL["recipe"]), [])


def test_adapters_and_counts_are_all_that_is_merged(
    small: Path, tmp_path: Path, model_path: str
) -> None:
    """The sites' data, samples and configurations are gone when their adapters are merged."""
    plan = read_plan(small, [])
    for place, site in enumerate(("north", "south")):
        folder = plan.folder(site, 0, 1)
        train(folder, plan, plan.turn_of(site, 0, 1), model_path, place)
        for path in folder.iterdir():
            if path.name != "adapter":
                path.unlink()
        (tmp_path / f"{site}.parquet").unlink()
    done = rarl_here("merge", *plan.merging(0, 1))
    assert done.returncode == 0, done.stderr
    origin = read_origin(plan.folder("merged", 0, 1) / "adapter")
    assert origin and [part.answer_tokens for part in origin.parts] == [10, 11]


def test_what_is_done_is_not_repeated_and_what_has_changed_is_refused(
    small: Path, tmp_path: Path, model_path: str
) -> None:
    """Where a first round is made and merged."""
    plan = read_plan(small, [])
    for place, site in enumerate(("north", "south")):
        train(plan.folder(site, 0, 1), plan, plan.turn_of(site, 0, 1), model_path, place)
    measured = plan.folder("north", 0, 1) / "evaluation/model=base/data=both/prompt=plain"
    measured.mkdir(parents=True)
    (measured / "replies").write_text("of the base")
    merging = next(one for one in plan.tasks() if one.title.endswith("1, seed 0: merging"))
    merging.prepare()
    assert rarl_here(*merging.arguments).returncode == 0
    merged = plan.folder("merged", 0, 1)
    copied = merged / "evaluation/model=base/data=both/prompt=plain/replies"
    assert copied.read_text() == "of the base", "which the merged adapter's run need not ask again"
    noted: list[str] = []

    def stop(arguments: list[str]) -> int:
        return 1

    with pytest.raises(UserError, match="merged, round 1, seed 0: measuring: failed"):
        federate(small, [], noted.append, stop)
    assert noted == ["[4/11] merged, round 1, seed 0: measuring"]
    compared = read_compared(tmp_path / "out")
    assert compared is None

    with pytest.raises(UserError, match="round-1-north-0: holds a run of another configuration"):
        read_plan(small, ["train.learning_rate=0.5"])
    with pytest.raises(UserError, match=r"round-1-north-0: holds a run of another .*train\.steps"):
        read_plan(small, ["train.steps=9"])
    assert read_plan(small, ["rounds=3"]).federation.rounds == 3, "there may be more rounds"
    shutil.rmtree(plan.folder("south", 0, 1))
    train(plan.folder("south", 0, 1), plan, plan.turn_of("south", 0, 1), model_path, 9)
    with pytest.raises(
        UserError, match="merged-0: was merged from another adapter than round-1-so"
    ):
        read_plan(small, [])


def test_all_data_together_are_a_mixture_in_which_each_row_counts_the_same(
    small: Path, tmp_path: Path
) -> None:
    plan = read_plan(small, [])
    task = plan.tasks()[-1]
    task.prepare()
    config = wanted_by(task)
    parts = read_mixture(Path(str(config.data.train)))
    assert [(part.path.name, part.weight) for part in parts] == [
        ("north.parquet", 8.0),
        ("south.parquet", 8.0),
    ]
    assert len(ParquetRows(str(config.data.train))) == 16
    assert RunDir(tmp_path / "out/together-0").config.is_file()


@pytest.mark.slow
@pytest.mark.whole
def test_a_killed_federation_goes_on_where_it_was(
    pool: SamplerPool, small: Path, tmp_path: Path
) -> None:
    """Killed while a site trains in the second round; what came before is not made again, and the
    adapters are those of a federation that nobody disturbed."""
    out, noted = tmp_path / "out", list[str]()

    def run(arguments: list[str]) -> int:
        done = rarl_here(*arguments, pool=pool if arguments[0] != "merge" else None)
        assert done.returncode == 0, done.stdout + done.stderr
        return 0

    def run_or_be_killed(arguments: list[str]) -> int:
        begun = out / "round-2-south-0" / "metrics.jsonl"
        if f"run_dir={begun.parent}" not in arguments:
            return run(arguments)
        process = subprocess.Popen(
            [RARL, *arguments], cwd=REPOSITORY, env=environment(), start_new_session=True
        )
        deadline = time.monotonic() + 400
        while not begun.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    with pytest.raises(UserError, match=r"south, round 2, seed 0: training: failed.*goes on"):
        federate(small, [], noted.append, run_or_be_killed)
    before = {path: path.stat().st_mtime_ns for path in out.rglob(WEIGHTS)}
    assert len(before) >= 4 and not (out / "round-2-south-0" / "adapter").exists()
    noted.clear()
    federate(small, [], noted.append, run)
    assert noted[0] == "[6/11] south, round 2, seed 0: training" and len(noted) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.exists())

    origin = read_origin(out / "round-2-merged-0" / "adapter")
    assert origin and [part.name for part in origin.parts] == ["round-2-north-0", "round-2-south-0"]
    for part in origin.parts:
        assert file_hash(out / part.name / "adapter" / WEIGHTS) == part.sha256
    compared = read_compared(out)
    assert compared and compared.reference == "merged, round 2"
    table = re.sub(" +", " ", (out / "results.md").read_text())
    for title in (
        "base",
        "north alone",
        "south alone",
        "north, round 1",
        "merged, round 1",
        "merged, round 2",
        "all data together",
    ):
        assert table.count(f"| {title} | 4 |") == 1, title
    done = rarl("federate", small)
    assert done.returncode == 0 and "[" not in done.stdout, done.stdout
    assert (out / "report.html").is_file()

    undisturbed = federate(small, [f"out={tmp_path / 'undisturbed'}"], noted.append, run)
    for name in ("round-2-south-0", "round-2-merged-0", "together-0"):
        weights = [one / name / "adapter" / WEIGHTS for one in (out, undisturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name
    costs = json.loads((out / "round-2-south-0" / "summary.json").read_text())["seconds"]
    assert costs["total"] > 0
