"""`ray job submit` of jobs/train.py against a local cluster, as on a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rarl.evaluation.measurements import Measurement, finished_measurements
from tests.judge_faults import free_port
from tests.runs import REPOSITORY, SHORT, environment

RAY = str(Path(sys.executable).parent / "ray")


def ray(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, *arguments],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """A head node of its own, with its environment variables and its job address."""
    variables = environment() | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    address = f"http://127.0.0.1:{(dashboard := free_port())}"
    assert ray(variables, "get-auth-token", "--generate").returncode == 0
    head = [
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--node-ip-address=127.0.0.1",
        "--disable-usage-stats",
    ]
    # The agent starts the jobs. Its port is fixed by default, and the cluster of other tests may
    # hold it.
    ports = [
        f"--port={free_port()}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    with (tmp_path / "head.log").open("w") as log:
        # Not `ray stop` at the end: it would stop every cluster of this machine, those of other
        # tests too.
        process = subprocess.Popen(
            [RAY, *head, *ports],
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.time() + 300
        # The job server answers before its agent can start jobs.
        while ray(variables, "job", "submit", "--address", address, "--", "true").returncode != 0:
            assert time.time() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(1)
        yield variables, address
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.engines
@pytest.mark.whole
def test_submitted_jobs_train_and_evaluate(
    cluster: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    """The evaluation asks with another prompt than the run's own, and keeps its answers apart."""
    variables, address = cluster
    package = tmp_path / "package"  # a fresh checkout: no environment, no runs
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(package)], check=True)
    run = tmp_path / "run"
    submit = [
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        str(package),
        "--",
        sys.executable,
    ]
    job = ["jobs/train.py", "configs/demo.yaml", f"run_dir={run}"]
    with ThreadPoolExecutor(1) as beside:
        failing = beside.submit(ray, variables, *submit, *job, "train.stepz=1")
        done = ray(variables, *submit, *job, *SHORT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((run / "summary.json").read_text())["trained"]["phantoms-seen"]["n"] == 30
    assert failing.result().returncode == 1
    assert "did you mean 'train.steps'?" in failing.result().stdout + failing.result().stderr

    before = set(finished_measurements(run / "evaluation"))
    measured = ray(variables, *submit, "jobs/evaluate.py", str(run), "prompts.eval=none")
    assert measured.returncode == 0, measured.stdout[-3000:] + measured.stderr[-3000:]
    assert "phantoms-unseen" in measured.stdout
    assert [path.name for path in (run / "evaluation").glob("summary*.json")] == [
        "summary-none.json"
    ]
    assert set(finished_measurements(run / "evaluation")) - before == {
        Measurement(label, f"phantoms-{name}", "none")
        for label in ("base", "trained")
        for name in ("seen", "unseen")
    }
    folder = run / "evaluation" / "model=base" / "data=phantoms-seen" / "prompt=none"
    for row in pq.read_table(folder).to_pylist():
        assert row["prompt/wording"] == "none/0" and row["score/rewards/reasoning"] is None
