"""The judge that comes with a run: started, planned and placed with it, shown the image, and gone
when the run is, however that ends."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rarl.commands.resolve import resolve_judge
from rarl.commands.targets import read_judge
from rarl.config import JudgeConfig, load_config
from rarl.errors import UserError
from rarl.planning.memory import CONTEXT_GIB, JUDGE, plan_memory
from rarl.planning.plan import make_plan, memory_table
from rarl.planning.sizes import model_shapes, step_work
from rarl.rollout.chat import ChatSettings, chat_arguments
from rarl.rollout.engine import BATCHED_TOKENS
from rarl.system.placement import needs_of, worker_resources
from rarl.tiny.dataset import base_model
from rarl.training.log import read_metrics
from tests.runs import RARL, REPOSITORY, SHORT, environment

DEMO = REPOSITORY / "configs/demo.yaml"
QWEN = REPOSITORY / "configs/recipes/qwen2vl_2b/rarl.yaml"
HUB = "Qwen/Qwen2-VL-2B-Instruct"
TINY = ("judge.backend=local", "judge.model=rarl.tiny.dataset:base_model")
JUDGED = "rewards={format: 0.2, accuracy: 1.0, judge: 0.5}"


# Configuration


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backend": "local"}, "judge.model is needed with judge.backend=local"),
        ({"image": True}, "judge.image and judge.rubric are for a judge that is a model"),
        ({"rubric": "steps"}, "judge.image and judge.rubric are for a judge that is a model"),
        ({"backend": "serve", "url": "app:judge", "rubric": "steps"}, "the application's own args"),
    ],
)
def test_what_makes_no_sense_is_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**keys)


def test_a_judges_model_is_a_path_for_a_judge_of_the_runs_own_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: {DEMO}\njudge: {{backend: local, model: mine}}\n")
    assert load_config(recipe).judge.model == str(tmp_path / "mine")
    served = "judge: {backend: openai, url: 'http://127.0.0.1:1/v1', model: mine}"
    recipe.write_text(f"extends: {DEMO}\n{served}\n")
    assert load_config(recipe).judge.model == "mine"


def test_overrides_name_a_judges_folder_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of backend and folder comes first, with a configuration and without."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    told = ["judge.model=mine", "judge.backend=local"]
    for overrides in (told, told[::-1]):
        assert load_config(DEMO, overrides).judge.model == str(tmp_path / "mine")
        assert read_judge(overrides).model == str(tmp_path / "mine")
    with pytest.raises(UserError, match=r"override 'judge.backend=local': judge.model is needed"):
        load_config(DEMO, told[1:])


def test_the_judges_engine_has_what_every_engine_has_on_a_gpu_and_no_adapter(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "judge.cache"
    settings = ChatSettings(
        model_path=str(base_model()),
        device="cuda",
        image=False,
        max_sequences=16,
        kv_cache_mib=64,
        gpu_memory_share=0.3,
        own_gpu=False,
        index=1,
        log_path="",
        cache_file=str(kept),
    )
    first = chat_arguments(settings)
    assert first["gpu_memory_utilization"] == 0.3 and first["kv_cache_memory_bytes"] is None
    assert first["max_num_batched_tokens"] == BATCHED_TOKENS
    assert not any("lora" in key for key in first)
    kept.write_text("7000000000")
    again = chat_arguments(settings)
    assert again["kv_cache_memory_bytes"] == 7_000_000_000
    assert again["gpu_memory_utilization"] < 0.05, "so much must be free beside a trainer"


def test_a_model_that_cannot_see_is_refused_before_anything_starts(tmp_path: Path) -> None:
    assert resolve_judge(JudgeConfig(backend="local", model=str(base_model()), image=True))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    blind = JudgeConfig(backend="local", model=str(tmp_path), image=True)
    with pytest.raises(UserError, match=r"judge\.image=true, but the judge .* cannot see"):
        resolve_judge(blind)
    assert resolve_judge(blind.model_copy(update={"image": False})) == str(tmp_path)


def test_a_model_that_is_not_there_is_named_by_its_key() -> None:
    with pytest.raises(UserError, match=r"judge.model=\./nowhere: no such folder"):
        resolve_judge(JudgeConfig(backend="local", model="./nowhere"))


# Plan and place


def test_the_judge_has_its_place_beside_sampler_and_trainer_or_a_card_of_its_own() -> None:
    config = load_config(DEMO, [*TINY, JUDGED, "rollout.num_actors=1"])
    beside = needs_of(config, "cuda", trains=True)
    assert sum(count * each.get("GPU", 0) for count, each in beside.values()) <= 1
    own = load_config(DEMO, [*TINY, JUDGED, "judge.own_gpu=true"])
    assert needs_of(own, "cuda", trains=True)["judge.backend=local"][1]["GPU"] == 1
    # It is not there where nobody asks it.
    assert "judge.backend=local" not in needs_of(config, "cuda", trains=False)
    # Two train workers do not fit beside each other, with or without a judge between them.
    assert worker_resources("cuda")["GPU"] * 2 + 0.51 > 1


def test_the_plan_counts_the_judges_engine() -> None:
    plan = make_plan(load_config(DEMO, [*TINY, JUDGED]))
    assert plan.processes is not None
    files = sum(file.stat().st_size for file in base_model().glob("*.safetensors"))
    assert plan.processes[JUDGE].added["weights"] == pytest.approx(files / 2**20)
    without = make_plan(load_config(DEMO, [JUDGED])).processes
    assert without is not None and without.keys() == plan.processes.keys() - {JUDGE}
    shared, own = (
        make_plan(
            load_config(
                QWEN, ["rewards.judge=0.3", "judge.backend=local", f"judge.model={HUB}", *more]
            ),
            "l4-24g",
        )
        for more in ([], ["judge.own_gpu=true"])
    )
    assert shared.memory is not None and own.memory is not None
    taken = 0.25 * 22 + CONTEXT_GIB
    assert shared.memory.trainer_limit == pytest.approx(own.memory.trainer_limit - taken)
    assert shared.memory.needed == pytest.approx(own.memory.needed + taken)
    assert own.memory.own_judge["weights"] == shared.memory.sampler["base weights"]
    assert any(JUDGE in str(cell) for cell in memory_table(own).columns[0].cells)


def test_a_judge_that_does_not_fit_its_share_is_told() -> None:
    more = ["rewards.judge=0.3", "judge.backend=local", f"judge.model={HUB}"]
    more += ["judge.gpu_memory_share=0.05"]
    config = load_config(QWEN, more)
    plan = plan_memory(config, model_shapes(HUB), 39.4, step_work(config, HUB))
    assert any("raise judge.gpu_memory_share" in line for line in plan.shortfalls())


# A run


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Returns those that still run after a while: Ray's own agents notice late that a cluster is
    gone. One that nobody has waited for does not run."""
    deadline, left = time.monotonic() + 300, processes
    while left and time.monotonic() < deadline:
        left = [one for one in left if runs(one)]
        time.sleep(0.2)
    return left


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
@pytest.mark.engines
def test_a_run_judges_is_killed_goes_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    """The tiny model as its own judge, that sees and grades steps: its verdicts mean nothing."""
    run = tmp_path / "run"
    more = ["judge.image=true", "judge.rubric=steps", "data.eval={}", "train.checkpoint_every=1"]
    command = [RARL, "train", str(DEMO), f"run_dir={run}", *SHORT, *TINY, JUDGED, *more]
    verdicts = []
    for kill_after in (1, None):
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment(), stdout=said, stderr=said
            )
        children: dict[int, psutil.Process] = {}
        made = 0
        while process.poll() is None and made != kill_after:
            for one in psutil.Process(process.pid).children(recursive=True):
                children[one.pid] = one
            made = len(read_metrics(run / "metrics.jsonl")) if run.exists() else 0
            time.sleep(0.2)
        process.kill()
        code = process.wait()
        assert code == (0 if kill_after is None else -9), (tmp_path / "said").read_text()
        assert (run / "logs" / "judge.log").exists() and len(children) > 5
        assert alive(list(children.values())) == []
        with sqlite3.connect(run / "judge.sqlite") as cache:
            verdicts.append(cache.execute("SELECT count(*) FROM verdicts").fetchone()[0])
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["judge/unreachable"] == 0 for row in rows)
    # The verdicts of the first start are still there.
    assert 0 < verdicts[0] < verdicts[1]
