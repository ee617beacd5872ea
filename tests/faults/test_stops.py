"""How a run ends when it is asked to, when the disk fails, and when Ray has no room; and that it goes on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rarl.files import write_text
from rarl.training.metrics import read_metrics
from tests.runs import RARL, REPOSITORY, SHORT, assert_one_line_error, environment, rarl

pytestmark = pytest.mark.slow


def command(run: Path, *overrides: str) -> list[str]:
    return [RARL, "train", "configs/demo.yaml", f"run_dir={run}", *SHORT, *overrides]


def test_sigterm_finishes_the_step_saves_and_ends_well(tmp_path: Path) -> None:
    """As a scheduler sends it to the job's main process before it takes the machine away."""
    run, log = tmp_path / "run", tmp_path / "log"
    longer = ("train.steps=40", "data.eval={}")
    with log.open("w") as out:
        process = subprocess.Popen(command(run, *longer), cwd=REPOSITORY, env=environment(), stdout=out, stderr=out)
        deadline = time.monotonic() + 300
        while len(read_metrics(run / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
    assert "stopped as asked; the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    made = len(read_metrics(run / "metrics.jsonl"))
    assert 2 <= made < 40
    assert (run / "checkpoints" / f"step_{made:06d}" / "state.json").is_file(), "the last step was saved"
    done = rarl("train", "configs/demo.yaml", f"run_dir={run}", *SHORT, *longer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(1, 41))


DISK = """
set -u
mount -t tmpfs -o size=2500k tmpfs {disk}
"$@" > {disk}.full.out 2> {disk}.full.err; echo $? > {disk}.full.rc
mount -o remount,size=200m {disk}
"$@" > {disk}.room.out 2> {disk}.room.err; echo $? > {disk}.room.rc
mount -o remount,ro {disk}
"$@" run_dir={disk}/other > {disk}.ro.out 2> {disk}.ro.err; echo $? > {disk}.ro.rc
cp -r {disk} {disk}.kept
"""


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """On a small file system of its own, seen by this one process family."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script"
    write_text(script, DISK.format(disk=disk))
    run = command(disk / "run", "data.eval={}", "train.steps=6")
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
    assert room.returncode == 0, room.stdout + room.stderr
    rows = read_metrics(Path(f"{disk}.kept") / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert_one_line_error(read_only, str(disk))


def test_more_samplers_than_the_machine_has_room_for_are_an_error_at_once(tmp_path: Path) -> None:
    count = 10 * (os.cpu_count() or 1)
    done = rarl("train", "configs/demo.yaml", f"run_dir={tmp_path / 'run'}", *SHORT, f"rollout.num_actors={count}")
    assert_one_line_error(done, "no room in the Ray cluster", f"rollout.num_actors={count}", "CPU", "lower that key")
