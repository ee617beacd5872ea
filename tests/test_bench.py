"""The update benchmark: its systems compute the same, and its rows say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, environment


@pytest.mark.long
def test_the_update_benchmark_compares_equal_work(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.json"
    command = [
        sys.executable,
        "bench/update.py",
        "--case",
        "tiny",
        "--repeats",
        "1",
        "--json",
        str(rows_file),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["system"]: row for row in json.loads(rows_file.read_text())}
    assert set(rows) == {"shared prefix", "TRL tuned", "plain pass"}
    for row in rows.values():
        assert (row["case"], row["prompt"], row["completion"], row["group"]) == ("tiny", 60, 40, 8)
        assert row["gradient_norm"] == pytest.approx(rows["TRL tuned"]["gradient_norm"], rel=1e-4)
        assert row["seconds"] > 0
        assert row["peak_mb"] > 0
        assert row["ratio_to_trl_tuned"] == rows["TRL tuned"]["seconds"] / row["seconds"]
