"""The update benchmark: its systems compute the same, and its rows say so; and the scripts for a
machine with a GPU, on this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cases import computes_bfloat16
from gpu_smoke import benchmarks

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


def run_script(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment() | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_smoke_test_gives_its_benchmarks_what_they_take() -> None:
    for name, arguments in benchmarks("cuda", Path("words")).items():
        done = run_script(f"bench/{name}", *arguments, "--help", timeout=120)
        assert done.returncode == 0, done.stderr


WITHOUT = """
import runpy, sys
for name in ("ray", "vllm", "pydantic", "pyarrow", "typer", "rich", "trl", "datasets"):
    sys.modules[name] = None  # cannot be imported
sys.argv = ["bench/gpu_update.py", *sys.argv[1:]]
sys.path.insert(0, "bench")
runpy.run_path("bench/gpu_update.py", run_name="__main__")
"""


def test_the_update_alone_is_imported_without_the_other_packages() -> None:
    done = run_script("-c", WITHOUT, "--help", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--device" in done.stdout


@pytest.mark.long
def test_the_update_alone_needs_pytorch_transformers_and_peft_only(tmp_path: Path) -> None:
    out = tmp_path / "gpu-update.json"
    done = run_script("-c", WITHOUT, "--device", "cpu", "--out", str(out), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass  ") == 3 * 2 + 1, "three families in two dtypes, and one case"
    assert "skip  TRL beside it" in done.stdout
    rows = json.loads(out.read_text())
    assert rows[-1]["case"] == "tiny" and 0 < rows[-1]["share_of_matmul_rate"] < 1


@pytest.mark.long
@pytest.mark.engines
def test_the_smoke_test_passes_without_a_gpu(tmp_path: Path) -> None:
    """All its steps but the checks of a GPU, and the 2B model where the CPU cannot: 15 GB, and some
    minutes."""
    out = tmp_path / "smoke.txt"
    script = ("bench/gpu_smoke.py", "--device", "cpu", "--out", str(out))
    done = run_script(*script, timeout=3600)
    report = out.read_text()
    assert done.returncode == 0, report
    assert report.endswith("PASS\n")
    verdicts = re.findall(r"^(pass|fail|skip)  ", report, flags=re.MULTILINE)
    able = computes_bfloat16()
    assert verdicts == ["pass", "skip", "pass", "pass" if able else "skip", *["pass"] * 3]
    assert report.count("mismatch of sampler and policy: mean") == 1 + able
    assert "MiB private, train worker:" in report


@pytest.mark.long
def test_the_smoke_test_says_what_fails(tmp_path: Path) -> None:
    """On a machine whose driver does not answer, with all that takes long left out."""
    out = tmp_path / "smoke.txt"
    skipped = [f"--skip={name}" for name in ("tiny", "2b", "update", "step")]
    done = run_script("bench/gpu_smoke.py", "--out", str(out), *skipped, timeout=300)
    report = out.read_text()
    assert done.returncode == 1
    assert report.endswith("FAIL\n")
    assert "fail  checks" in report and "no NVIDIA driver answers" in report
    assert "skip  a served adapter, asked once" in report
