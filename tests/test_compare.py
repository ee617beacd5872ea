"""Comparisons: what their file may say, what is left to do, and a whole one that is killed and
continued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rarl.commands.compare import compare, read_plan, run_rarl
from rarl.commands.resolve import require_other_judge
from rarl.config import load_config
from rarl.data.parquet import write_examples
from rarl.errors import UserError
from rarl.evaluation.lines import read_compared
from rarl.rollout.pool import SamplerPool
from rarl.tiny.dataset import draw_examples
from tests.runs import RARL, REPOSITORY, SHORT, environment, rarl, rarl_here

CONFIGS = REPOSITORY / "configs" / "compare"
RECIPES = REPOSITORY / "configs" / "recipes" / "tiny"
SFT = {"title": "SFT", "recipe": str(RECIPES / "sft.yaml")}
SMALL: dict[str, Any] = {
    "seeds": [0],
    "models": {
        "sft": SFT,
        "rarl": {"title": "RARL", "recipe": str(RECIPES / "rarl.yaml")},
        "alone": {"title": "RARL, answer alone", "measured_as": "rarl", "prompt": "none"},
    },
    "reference": "rarl",
    "overrides": SHORT,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"out": str(folder / "out")} | changes, sort_keys=False))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_comparisons_that_ship_are_whole(path: Path) -> None:
    # the user's own data is not here
    plan = read_plan(path, [], check=False)
    assert len(plan.tasks()) >= 9
    assert {task.arguments[0] for task in plan.tasks()} <= {"train", "eval"}
    assert plan.comparison.reference in ("rarl", "rarl-960")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refrence": "a"}, "unknown key 'refrence'; did you mean 'reference'?"),
        ({"data_overide": []}, "unknown key 'data_overide'; did you mean 'data_overrides'?"),
        (
            {"models": {"a": {"title": "A", "recipee": "a.yaml"}}},
            "unknown key 'models.a.recipee'; did you mean 'models.a.recipe'?",
        ),
    ],
)
def test_a_misspelt_key_is_compared_with_a_comparisons_keys(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_plan(write(tmp_path, **changes), [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "seed=3: every training has its own seed; set seeds"),
        ("run_dir=x", "run_dir=x: every training has its own run_dir; set out"),
        ("trian.steps=3", "override 'trian.steps=3': unknown key 'trian'"),
    ],
)
def test_keys_that_no_training_takes_are_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_plan(write(tmp_path), [override])


def test_another_reference_trains_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path)
    usual, other = read_plan(path, []), read_plan(path, ["reference=sft"])
    assert (usual.comparison.reference, other.comparison.reference) == ("rarl", "sft")
    assert usual.tasks() == other.tasks()
    with pytest.raises(UserError, match=r"reference: 'ppo' is none of sft, rarl, alone"):
        read_plan(path, ["reference=ppo"])


def test_a_run_and_a_comparison_are_told_apart() -> None:
    with pytest.raises(UserError, match=r"rarl\.yaml: is a run's, for `rarl train`"):
        read_plan(RECIPES / "rarl.yaml", [])
    with pytest.raises(UserError, match=r"tiny\.yaml: is a comparison; `rarl compare` takes it"):
        load_config(CONFIGS / "tiny.yaml")


JUDGED = {
    "judged_by": {"backend": "rules"},
    "overrides": [*SHORT, "rewards.judge=null"],
    "claims": [
        {
            **{"sentence": 7, "says": "It is better.", "metric": "judge_correctness"},
            **{"model": "rarl", "against": "sft", "data": ["phantoms-seen"], "claimed": 7.78},
        }
    ],
}


def test_a_judge_of_the_comparison_judges_every_model(tmp_path: Path, dataset: Path) -> None:
    further = {"data": {"other": str(dataset)}}
    plan = read_plan(write(tmp_path, **JUDGED, **further), [])
    titles = [task.title for task in plan.tasks()]
    assert titles[:3] == [
        "SFT, seed 0: training",
        "SFT, seed 0: measuring on phantoms-seen, phantoms-unseen",
        "SFT, seed 0: measuring on other",
    ]
    for task in plan.tasks():
        if task.arguments[0] == "eval":
            [judge] = [one for one in task.arguments if one.startswith("judge=")]
            held = load_config(RECIPES / "rarl.yaml", [judge]).judge
            assert (held.backend, held.evaluate) == ("rules", True)
            assert all("judge=rules" in str(path) for path in task.makes)
    plan.write()
    compared = read_compared(plan.out)
    assert compared and {line.judge for line in compared.lines} == {"rules"}
    assert [(one.model, one.against) for one in compared.claims] == [("RARL", "SFT")]
    table = (plan.out / "results.md").read_text()
    assert "+7.78 points" in table and "not measured on phantoms-seen" in table


def test_the_judge_of_the_comparison_may_not_be_the_one_that_trains(tmp_path: Path) -> None:
    named = JUDGED | {"overrides": SHORT}
    with pytest.raises(UserError, match="the rules would judge a policy that it gave the rewards"):
        read_plan(write(tmp_path, **named), [])
    read_plan(write(tmp_path, **named), ["judged_by.allow_same=true"])
    served = ["judged_by={backend: openai, url: 'http://127.0.0.1:1/v1', model: a-judge}"]
    plan = read_plan(write(tmp_path, **named), served)
    assert plan.key("rarl", "phantoms-seen").judge == "a-judge@http://127.0.0.1:1/v1"
    with pytest.raises(UserError, match=r"judge\.url: expected http://host:port/v1, got 'nowhere'"):
        read_plan(write(tmp_path, **named), [*served, "judged_by.url=nowhere"])


def test_all_data_that_are_missing_are_named_in_one_line(tmp_path: Path) -> None:
    data = {"x": "no/x.parquet", "y": "no/y.parquet"}
    with pytest.raises(UserError) as raised:
        read_plan(write(tmp_path, data=data), ["data.train=no/train.parquet"])
    told = str(raised.value)
    assert told.startswith("data.train=") and "data.x=" in told and "data.y=" in told
    assert told.endswith("no such files or folders; make a data set with `rarl prepare`")
    plan = read_plan(write(tmp_path, data=data), [], check=False)
    assert list(plan.absent_data()) == ["data.x", "data.y"]


def test_the_papers_comparison_is_the_same_on_the_tiny_world() -> None:
    """The same models and claims but for the data sets, and no judge that also trains."""
    paper, tiny = (
        read_plan(CONFIGS / f"{name}.yaml", [], check=False) for name in ("paper", "paper_tiny")
    )
    assert list(paper.comparison.models) == list(tiny.comparison.models)
    assert [one.title for one in paper.comparison.models.values()] == [
        one.title for one in tiny.comparison.models.values()
    ]
    assert paper.comparison.seeds == tiny.comparison.seeds == [0, 1, 2]
    said = [
        {one.says for one in plan.comparison.claims if "table" not in str(one.sentence)}
        for plan in (paper, tiny)
    ]
    assert said[0] == said[1]
    assert {one.sentence for one in tiny.comparison.claims} == set(range(1, 12))
    for plan in (paper, tiny):
        for one in plan.comparison.claims:
            assert set(one.data) <= plan.data_sets().keys()
    assert list(paper.absent_data()) == [
        "data.train",
        "data.eval.silvar-med",
        *("data.vqa-rad", "data.slake", "data.vqa-med-2019", "data.path-vqa"),
    ]
    tiny.check()
    judge = paper.judge
    assert judge is not None
    for name in paper.comparison.models:
        require_other_judge(paper.config(name, 0), judge)


def test_each_ablation_is_one_override() -> None:
    plan = read_plan(CONFIGS / "ablations.yaml", [])
    for name, entry in plan.comparison.models.items():
        if name.startswith("rarl-"):
            assert len(entry.overrides) + (entry.prompt is not None) == 1
            plain = load_config(
                RECIPES / "rarl.yaml", [f"run_dir={plan.folder(name, 0)}", "seed=0"]
            )
            assert (plan.config(name, 0) != plain) == bool(entry.overrides)


def test_each_model_learns_from_each_number_of_examples(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, examples=[240, 60], seeds=[0]), [])
    names = ["sft-60", "sft-240", "rarl-60", "rarl-240", "alone-60", "alone-240"]
    assert list(plan.comparison.models) == names
    assert plan.comparison.reference == "rarl-240"
    assert plan.comparison.models["rarl-60"].title == "RARL, 60 examples"
    assert plan.folder("alone-60", 0) == plan.folder("rarl-60", 0)
    for name in names[:4]:
        assert plan.config(name, 0).data.select.examples == int(name.split("-")[1])
    plan.write()
    held = json.loads((plan.out / "comparison.json").read_text())
    lines = [(one["method"], one["examples"], one["runs"]) for one in held["lines"]]
    assert lines[2] == ("RARL", 60, {"0": "rarl-60-0"})


def test_tasks_in_order_with_further_data(tmp_path: Path, dataset: Path) -> None:
    changes = {
        "data": {"other": str(dataset)},
        "data_overrides": ["rollout.max_model_length=512"],
        "seeds": [3, 4],
    }
    plan = read_plan(write(tmp_path, **changes), ["train.steps=5"])
    titles = [task.title for task in plan.tasks()]
    assert titles[:3] == [
        "SFT, seed 3: training",
        "SFT, seed 3: measuring on other",
        "SFT, seed 4: training",
    ]
    assert titles[-1] == "RARL, answer alone, seed 4: measuring on other" and len(titles) == 12
    training, measuring = plan.tasks()[:2]
    assert training.arguments[0] == "train" and training.arguments[-3:] == [
        "train.steps=5",
        f"run_dir={tmp_path / 'out/sft-3'}",
        "seed=3",
    ]
    assert measuring.arguments == [
        "eval",
        str(tmp_path / "out/sft-3"),
        f'data.eval={{"other": "{dataset}"}}',
        "rollout.max_model_length=512",
    ]
    assert list(plan.data_sets()) == ["phantoms-seen", "phantoms-unseen", "other"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "rral"}, "'rral' is none of sft, rarl, alone"),
        ({"models": {"a": {"title": "A"}}, "reference": "a"}, "either `recipe` or `measured_as`"),
        ({"models": {"a b": SFT}}, "models.a b"),
        (
            {
                "models": {"a": {"title": "A", "measured_as": "b", "prompt": "none"}},
                "reference": "a",
            },
            "'b' is not a model",
        ),
        ({"sedes": [1]}, "sedes"),
        ({"models": {"a": SFT, "b": SFT}, "reference": "a"}, "another model is called 'SFT'"),
        (
            {"claims": [{"sentence": 1, "says": "s", "model": "rral"}]},
            "claims.0: 'rral' is none of base, sft, rarl, alone",
        ),
        ({"claims": [{"sentence": 1, "says": "s"}], "examples": [60]}, "claims: are not for a"),
        ({"data": {"x": "nowhere.parquet"}}, "data.x=/.*/nowhere.parquet: no such file"),
        ({"overrides": ["train.stesp=3"]}, "did you mean 'train.steps'"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_plan(write(tmp_path, **changes), []).data_sets()


def test_paths_in_a_comparison_are_relative_to_its_file(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    dataset.rename(tmp_path / "mine.parquet")
    changes = {
        "out": "out",
        "data": {"other": "mine.parquet"},
        "overrides": [*SHORT, "data.eval={further: mine.parquet}"],
    }
    path = write(tmp_path, **changes)
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan = read_plan(path, [])
    mine = str(tmp_path / "mine.parquet")
    assert plan.data_sets() == {"further": mine, "other": mine}
    assert plan.folder("rarl", 0) == tmp_path / "out/rarl-0"
    assert read_plan(path, ["out=x"]).out == tmp_path / "elsewhere/x"


def test_what_is_written_for_the_report_has_the_titles_and_the_reference(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, seeds=[0, 1]), [])
    plan.write()
    compared = read_compared(plan.out)
    assert compared and compared.reference == "RARL"
    assert [(one.title, one.prompt, one.runs[1]) for one in compared.lines] == [
        ("SFT", "plain", "sft-1"),
        ("RARL", "reason", "rarl-1"),
        ("RARL, answer alone", "none", "rarl-1"),
    ]
    (plan.out / "comparison.json").write_text("{")
    with pytest.raises(UserError, match=r"comparison.json: cannot be read; delete it"):
        read_compared(plan.out)


@pytest.mark.slow
@pytest.mark.whole
def test_a_killed_comparison_continues_and_repeats_nothing(
    pool: SamplerPool, tmp_path: Path
) -> None:
    """Killed while the second model trains."""
    path, out = write(tmp_path), tmp_path / "out"
    noted: list[str] = []

    def run(arguments: list[str]) -> int:
        done = rarl_here(*arguments, pool=pool)
        assert done.returncode == 0, done.stdout + done.stderr
        return 0

    def run_or_be_killed(arguments: list[str]) -> int:
        begun = out / "rarl-0" / "metrics.jsonl"
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

    with pytest.raises(UserError, match=r"RARL, seed 0: training: failed.*same command goes on"):
        compare(path, [], noted.append, run_or_be_killed)
    first = (out / "sft-0" / "summary.json").stat().st_mtime_ns
    assert not (out / "rarl-0" / "summary.json").exists()

    compare(path, [], noted.append, run)
    training, measuring = "[2/3] RARL, seed 0: training", "[3/3] RARL, answer alone, seed 0: "
    assert noted[1:3] == [training, training] and len(noted) == 4
    assert noted[0].startswith("[1/3] SFT") and noted[3].startswith(measuring)
    assert (out / "sft-0" / "summary.json").stat().st_mtime_ns == first
    table = re.sub(" +", " ", (out / "results.md").read_text())
    for title in (
        "base (prompt plain)",
        "base (prompt reason)",
        "SFT",
        "RARL",
        "RARL, answer alone",
    ):
        assert table.count(f"| {title} | 30 |") == 2, title
    assert all((out / f"results.{kind}").is_file() for kind in ("csv", "tex"))

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")}
    done = rarl("compare", path)
    assert done.returncode == 0 and "[" not in done.stdout, done.stdout
    assert (out / "report.html").is_file()
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")}


def test_each_part_of_a_comparison_is_a_process_that_reports_how_it_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_rarl(["--help"]) == 0 and run_rarl(["train", "no-such.yaml"]) == 2
    assert "no-such.yaml: no such file" in capfd.readouterr().err


def test_the_groups_that_are_compared_are_those_of_recipes_and_further_data(tmp_path: Path) -> None:
    assert read_plan(write(tmp_path), []).groups() == []
    path = write(
        tmp_path,
        overrides=[*SHORT, "evaluation.by=[answer_type]"],
        data_overrides=["evaluation.by=[site, answer_type]"],
    )
    plan = read_plan(path, [])
    assert plan.groups() == ["answer_type", "site"]
    plan.out.mkdir()
    plan.write()
    assert json.loads((plan.out / "comparison.json").read_text())["by"] == ["answer_type", "site"]


def test_a_column_that_no_data_set_has_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    rows = draw_examples("seen", 4, seed=0, split="test")
    write_examples(tmp_path / "test.parquet", rows)
    data = str(tmp_path / "test.parquet")
    overrides = [*SHORT, f"data.eval={{seen: {data}}}", "evaluation.by=[sex]"]
    with pytest.raises(UserError, match=r"nothing in data\.eval\.seen has a column 'sex'"):
        read_plan(write(tmp_path, overrides=overrides), [])
