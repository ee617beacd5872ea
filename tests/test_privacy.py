"""Nothing leaves the machine, however Ray is started: no statistics are sent, and nobody else
reaches what a run opens. Commands are run as their files have them; of clusters up to `ray`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from rarl import NO_TELEMETRY
from tests.judge_faults import free_port
from tests.privacy import assert_private
from tests.runs import RARL, REPOSITORY, SHORT, environment

SECONDS = 300
# Prints the environment that it is started in, in place of Ray.
STAND_IN = (
    f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv, {{**os.environ}}]))\n"
)
ASKED = """
import json, rarl.cli
from huggingface_hub import constants
from ray._common.usage.usage_lib import usage_stats_enabled
from vllm import envs
vllm = envs.VLLM_NO_USAGE_STATS and envs.VLLM_DO_NOT_TRACK
off = [not usage_stats_enabled(), bool(vllm), constants.HF_HUB_DISABLE_TELEMETRY]
print(json.dumps(off))
"""


def telling() -> dict[str, str]:
    """The environment of somebody who has said nothing about statistics."""
    return {key: value for key, value in environment().items() if key not in NO_TELEMETRY}


@pytest.mark.slow
def test_whoever_imports_rarl_sends_no_statistics() -> None:
    """As Ray, vLLM and Hugging Face themselves see it."""
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(
        command, env=telling(), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True, True]


def test_who_wants_to_send_them_still_can() -> None:
    command = [sys.executable, "-c", "import os, rarl; print(os.environ['DO_NOT_TRACK'])"]
    chosen = telling() | {"DO_NOT_TRACK": "0"}
    done = subprocess.run(command, env=chosen, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "0\n"


def start_commands() -> dict[str, str]:
    """Every way in which these files start Ray by its own program."""
    found = {}
    for name in ("cluster.yaml", "deploy/cluster-onprem.yaml"):
        cluster = yaml.safe_load((REPOSITORY / name).read_text())
        for role in ("head", "worker"):
            (found[f"{name} {role}"],) = (
                one for one in cluster[f"{role}_start_ray_commands"] if "ray start" in one
            )
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        blocks = re.findall(r"^```.*?\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        for number, block in enumerate(blocks):
            if start := re.search(r"^\S*\bray start\b.*$", block, re.MULTILINE):
                found[f"{path.name} {number}"] = block[: start.end()]
    return found


@pytest.mark.parametrize("name", start_commands())
def test_a_cluster_is_started_without_statistics(name: str, tmp_path: Path) -> None:
    for place in ("bin", ".venv/bin", "rarl/.venv/bin", "rarl/.venv-gpu/bin"):
        ray = tmp_path / place / "ray"
        ray.parent.mkdir(parents=True)
        ray.write_text(STAND_IN)
        ray.chmod(0o755)
    places = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", start_commands()[name]],
        cwd=tmp_path,
        env=telling() | places | {"RAY_HEAD_IP": "10.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, variables = json.loads(done.stdout.splitlines()[-1])
    assert arguments[1] == "start"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_image_sends_no_statistics() -> None:
    text = (REPOSITORY / "deploy/Dockerfile").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("ENV ")]
    assert dict(pair.split("=") for line in lines for pair in line[1:]) == NO_TELEMETRY


def test_engines_of_ray_serves_own_are_told_too() -> None:
    """Those that do not import RARL: their files say it."""
    files = [*REPOSITORY.glob("configs/judge/*.yaml"), REPOSITORY / "deploy/rayservice.yaml"]
    engines = [one for one in files if "ray.serve.llm" in one.read_text()]
    assert len(engines) >= 3
    for file in engines:
        assert 'VLLM_NO_USAGE_STATS: "1"' in file.read_text(), file


@contextmanager
def started(log: Path, *arguments: str) -> Iterator[psutil.Process]:
    """A command of `rarl`, that is ended by SIGTERM and then has to end well."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [RARL, *arguments], cwd=REPOSITORY, env=telling(), stdout=output, stderr=output
        )
    try:
        yield psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0, log.read_text()
    finally:
        process.kill()


def wait_for(path: Path, text: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.engines
@pytest.mark.whole
def test_a_service_of_a_file_is_this_machines_alone_and_ends_silently(tmp_path: Path) -> None:
    log, port = tmp_path / "log.txt", free_port()
    with started(log, "serve", "configs/judge/rules.yaml", f"--port={port}") as process:
        wait_for(log, "Ctrl-C ends it", log)
        assert_private(process)
    assert log.read_text().splitlines() == [
        "starting judge; an engine takes a minute or more",
        f"judge http://127.0.0.1:{port}/judge; Ctrl-C ends it",
        "answering what is in flight, then stopping",
    ]


@pytest.mark.slow
@pytest.mark.engines
@pytest.mark.whole
def test_a_run_is_this_machines_alone(tmp_path: Path) -> None:
    """While two train workers are at work, which talk to each other."""
    run, log = tmp_path / "run", tmp_path / "log.txt"
    keys = [*SHORT, "train.steps=100", "train.num_workers=2", "data.eval={}", f"run_dir={run}"]
    with started(log, "train", "configs/demo.yaml", *keys) as process:
        wait_for(run / "metrics.jsonl", "\n", log)
        assert_private(process)
