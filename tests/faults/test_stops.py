"""How whole runs end (killed, asked to, disk full, a node lost, no room) and that they go on to the same last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rarl.files import write_text
from rarl.training.metrics import read_metrics
from rarl.training.run_dir import RunDir
from tests.faults.campaign import differences, family
from tests.faults.test_checkpoint import flip
from tests.runs import RARL, REPOSITORY, SHORT, assert_one_line_error, environment, rarl

pytestmark = pytest.mark.slow
STEPS = 12
OVERRIDES = [*SHORT, f"train.steps={STEPS}", "data.eval={}", "train.checkpoint_every=1", "rollout.num_actors=2"]


def command(run: Path, *overrides: str) -> list[str]:
    return [RARL, "train", "configs/demo.yaml", f"run_dir={run}", *OVERRIDES, *overrides]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = rarl(*command(run)[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def start_until(step: int, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """The run, as soon as it has made the step."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command(run), cwd=REPOSITORY, env=environment(), stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while len(read_metrics(run / "metrics.jsonl")) < step and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    return process


def test_a_run_that_is_killed_and_then_asked_to_stop_is_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    """By SIGKILL as in a power cut, which damages a file; then by SIGTERM as a scheduler sends it before it takes the
    machine away."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_until(2, run, log)
    others = family(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(others, timeout=60)  # they end when they notice
    assert 2 <= len(read_metrics(run / "metrics.jsonl")) < STEPS
    newest = max((run / "checkpoints").glob("step_*"))
    flip(newest / "adapter" / "adapter_model.safetensors")

    with RunDir(run).owned():
        assert_one_line_error(rarl(*command(run)[1:]), str(run), "another process is at work in this run directory")

    process = start_until(int(newest.name.removeprefix("step_")) + 1, run, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0, log.read_text()
    assert "stopped as asked; the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    said = " ".join(log.read_text().split())
    assert f"damaged checkpoint, the one before it is used: {newest}" in said.replace("/ ", "/"), said
    made = len(read_metrics(run / "metrics.jsonl"))
    assert made < STEPS
    assert (run / "checkpoints" / f"step_{made:06d}" / "state.json").is_file(), "the last step was saved"

    done = rarl(*command(run, "train.max_restarts=9", "judge.retries=9")[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(undisturbed, run, STEPS) == []


DISK = """
set -u
mount -t tmpfs -o size=5500k tmpfs {disk}  # the data, and one checkpoint and a half
"$@" > {disk}.full.out 2> {disk}.full.err; echo $? > {disk}.full.rc
cp {disk}/run/metrics.jsonl {disk}.full.metrics
mount -o remount,size=200m,ro {disk}
"$@" > {disk}.ro.out 2> {disk}.ro.err; echo $? > {disk}.ro.rc
mount -o remount,rw {disk}
"$@" > {disk}.room.out 2> {disk}.room.err; echo $? > {disk}.room.rc
cp -r {disk} {disk}.kept
"""


def test_a_full_and_a_read_only_disk_are_named_and_the_run_goes_on_when_there_is_room(
    undisturbed: Path, tmp_path: Path
) -> None:
    """On a small file system of its own, seen by this one process family."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script"
    write_text(script, DISK.format(disk=disk))
    run = command(disk / "run")
    subprocess.run(["unshare", "-rm", "bash", str(script), *run], cwd=REPOSITORY, env=environment(), check=True)
    full, room, read_only = (
        subprocess.CompletedProcess(
            run,
            int(Path(f"{disk}.{name}.rc").read_text()),
            Path(f"{disk}.{name}.out").read_text(),
            Path(f"{disk}.{name}.err").read_text(),
        )
        for name in ("full", "room", "ro")
    )
    assert_one_line_error(full, "No space left on device", str(disk), "the same command continues")
    assert len(read_metrics(Path(f"{disk}.full.metrics"))) >= 2, "the disk became full in the midst of the training"
    assert room.returncode == 0, room.stdout + room.stderr
    assert differences(undisturbed, Path(f"{disk}.kept") / "run", STEPS) == []
    assert_one_line_error(read_only, str(disk))


def test_more_samplers_than_the_machine_has_room_for_are_an_error_at_once(tmp_path: Path) -> None:
    count = 10 * (os.cpu_count() or 1)
    done = rarl("train", "configs/demo.yaml", f"run_dir={tmp_path / 'run'}", *SHORT, f"rollout.num_actors={count}")
    assert_one_line_error(done, "no room in the Ray cluster", f"rollout.num_actors={count}", "CPU", "lower that key")


def test_a_run_on_two_nodes_survives_the_loss_of_one(undisturbed: Path, tmp_path: Path) -> None:
    """A sampler and a train worker on each. It is the run of one node and one worker all the same."""
    run = tmp_path / "run"
    nodes = [sys.executable, "-m", "tests.faults.nodes", str(tmp_path), str(run)]
    done = subprocess.run(
        ["unshare", "-rnmpf", "--mount-proc", *nodes, *command(run, "train.num_workers=2")],
        cwd=REPOSITORY,
        env=environment() | {"RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": "cable"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lost = json.loads((tmp_path / "second-node.json").read_text())
    for part in ("ray::Sampler", "ray::RayTrainWorker"):
        assert any(title.startswith(part) for title in lost), lost
    rows = [read_metrics(one / "metrics.jsonl") for one in (undisturbed, run)]
    assert [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    for one, two in zip(*rows, strict=True):
        for key in ("loss", "kl", "entropy", "reward/mean", "completion_tokens", "learning_rate"):
            assert one[key] == pytest.approx(two[key], abs=1e-5), (one["step"], key)
