"""How whole runs end (killed, asked to, disk full, a node lost) and that they go on to the same
last bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rarl.training.log import read_metrics
from tests.conftest import FinishedRun
from tests.faults.campaign import KINDS, differences, family
from tests.faults.small_disk import ENDS, End
from tests.runs import (
    FINISHED,
    RARL,
    REPOSITORY,
    STEPS,
    assert_one_line_error,
    environment,
)

pytestmark = pytest.mark.slow


def command(run: Path, *overrides: str) -> list[str]:
    return [
        RARL,
        "train",
        "configs/demo.yaml",
        f"run_dir={run}",
        *FINISHED,
        "data.eval={}",
        *overrides,
    ]


def asked_to_end(
    arguments: list[str], when: Callable[[int], bool], by: int = signal.SIGTERM
) -> None:
    """Starts a program, sends a signal to it as soon as `when` is true of its process id, and
    asserts that it ends as promised, and leaves no process behind."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not when(process.pid) and process.poll() is None:
        time.sleep(0.001)
    started = family(process)
    process.send_signal(by)
    _, said = process.communicate(timeout=120)
    code, how = (130, "interrupted") if by == signal.SIGINT else (0, "stopped as asked")
    told = f"{how}; the same command continues where this one stopped\n"
    assert (process.returncode, said) == (code, told)
    assert psutil.wait_procs(started, timeout=30)[1] == []


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler of SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", [["-m", "rarl", "train"], ["jobs/train.py"]])
def test_signals_are_heeded_before_anything_is_imported(
    tmp_path: Path, program: list[str], by: int
) -> None:
    """At once, which is in the first tenth of a second: the libraries take longer to import."""
    arguments = [*program, "configs/demo.yaml", f"run_dir={tmp_path / 'run'}"]
    asked_to_end(arguments, catches_sigterm, by)
    assert not (tmp_path / "run").exists()


WITHIN = """
import pathlib, sys, time
from rarl.system.processes import interruptible
with interruptible():
    try:
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(100)
    except BaseException as error:
        raise RuntimeError("what an exception becomes within Ray") from error
"""


def test_ctrl_c_raises_nothing_within_other_code(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    asked_to_end(["-c", WITHIN, str(begun)], lambda pid: begun.exists(), signal.SIGINT)


@pytest.mark.engines
def test_sigterm_is_heeded_before_training(tmp_path: Path) -> None:
    """Ray is up then, and has not put its own handler in place of ours."""
    log = tmp_path / "run" / "logs" / "sampler-0.log"
    asked_to_end(["-m", "rarl", *command(tmp_path / "run")[1:]], lambda pid: log.exists())


@pytest.mark.long
@pytest.mark.engines
def test_a_run_that_is_killed_eight_times_in_seven_ways_is_the_undisturbed_one(
    tmp_path: Path,
) -> None:
    """The campaign (`make campaign`) in short."""
    campaign = [
        sys.executable,
        "-m",
        "tests.faults.campaign",
        "--kills",
        "8",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        campaign,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["differences"] == []
    assert result["killed"].keys() == KINDS.keys()


@pytest.fixture
def undisturbed(finished_run: FinishedRun) -> Path:
    return finished_run.folder


@pytest.mark.whole
def test_a_run_through_all_that_ends_runs_is_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    """On a disk of its own, seen by this one process family: it becomes full, and is read-only for
    a while; then Ctrl-C while it starts, SIGKILL as in a power cut, which damages a file, and
    SIGTERM as a scheduler sends it before it takes the machine away."""
    disk = tmp_path / "disk"
    disk.mkdir()
    steps = [sys.executable, "-m", "tests.faults.small_disk", str(disk), *command(disk / "run")]
    done = subprocess.run(
        ["unshare", "-rm", *steps], cwd=REPOSITORY, env=environment(), check=False
    )
    assert done.returncode == 0
    full, read_only, second, interrupted, killed, asked, last = (
        End.read(disk, name) for name in ENDS
    )

    assert_one_line_error(
        full.done, "No space left on device", str(disk), "the same command continues"
    )
    assert full.steps >= 2, "the disk became full in the midst of the training"
    assert_one_line_error(read_only.done, str(disk), "Read-only file system")
    assert_one_line_error(
        second.done, str(disk), "another process is at work in this run directory"
    )
    assert interrupted.returncode == 130
    assert interrupted.stderr == "interrupted; the same command continues where this one stopped\n"
    assert full.steps == interrupted.steps <= killed.steps < STEPS

    assert asked.done.returncode == 0 and "Traceback" not in asked.done.stderr, asked.done.stderr
    assert "stopped as asked; the same command continues" in asked.done.stderr
    said = "".join(asked.done.stdout.split())  # lines are broken anywhere
    assert f"damagedcheckpoint,theonebeforeitisused:{disk}/run/checkpoints/{killed.newest}" in said
    assert killed.steps <= asked.steps < STEPS
    assert asked.newest == f"step_{asked.steps:06d}", "the last step was saved"

    assert last.done.returncode == 0, last.done.stdout + last.done.stderr
    assert differences(undisturbed, disk.with_suffix(".kept") / "run", STEPS) == []


@pytest.mark.whole
def test_a_run_on_two_nodes_survives_the_loss_of_one(undisturbed: Path, tmp_path: Path) -> None:
    """A sampler and a train worker on each. It is the run of one node and one worker all the
    same."""
    run = tmp_path / "run"
    nodes = [sys.executable, "-m", "tests.faults.nodes", str(tmp_path), str(run)]
    done = subprocess.run(
        [
            "unshare",
            "-rnmpf",
            "--mount-proc",
            *nodes,
            *command(run, "train.num_workers=2", "rollout.num_actors=2"),
        ],
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
