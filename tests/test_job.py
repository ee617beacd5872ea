"""`ray job submit` of jobs/train.py against a local cluster, as on a real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, SHORT, environment

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_submitted_job_trains(tmp_path: Path) -> None:
    variables = environment() | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    port, dashboard = free_port(), free_port()

    def ray(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *arguments], cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=timeout, check=False
        )

    head = ["start", "--head", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"]
    variables["RAY_TMPDIR"] = str(tmp_path)
    token = ray("get-auth-token", "--generate")
    started = ray(*head, "--node-ip-address=127.0.0.1", "--disable-usage-stats")
    assert started.returncode == 0, token.stdout + token.stderr + started.stdout + started.stderr
    try:
        run = tmp_path / "run"
        script = f"{sys.executable} jobs/train.py configs/demo.yaml run_dir={run} {' '.join(SHORT)}"
        address = f"http://127.0.0.1:{dashboard}"
        package = tmp_path / "package"  # a working directory of the size of a checkout, without environment and runs
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(package)], check=True)
        submit = ["job", "submit", "--address", address, "--working-dir", str(package), "--", *script.split()]
        done = ray(*submit)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
        assert json.loads((run / "summary.json").read_text())["trained"]["phantoms-seen"]["n"] == 30
        failing = ray(*submit[:-len(SHORT)], "train.stepz=1")
        assert failing.returncode == 1
        assert "did you mean 'train.steps'?" in failing.stdout + failing.stderr
    finally:
        ray("stop", "--force")
        assert os.path.exists(tmp_path)
