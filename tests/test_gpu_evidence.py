"""What is known of a GPU without one: the update at the true shapes of the 2B model, vLLM's own
configuration for a card, and that the packages of the GPU build go together."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from meta_update import count_update

from rarl.config import load_config
from rarl.planning.sizes import QWEN2_VL_2B
from rarl.rollout.engine import BATCHED_TOKENS
from rarl.rollout.sampler import SamplerSettings
from rarl.system.processes import sampler_environment
from tests.runs import REPOSITORY, environment

RECIPE = REPOSITORY / "configs/recipes/qwen2vl_2b/rl.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "checkpointing"), [((800, 250, 8), False), ((612, 512, 8), True)]
)
def test_the_2b_update_takes_the_memory_that_is_planned(
    shape: tuple[int, int, int], checkpointing: bool
) -> None:
    """In bfloat16, forward and backward, with the kernels of a GPU, on tensors without values."""
    found = count_update(*shape, checkpointing)
    assert found.planned == pytest.approx(found.peak, rel=0.2)
    assert len(found.gradients) == 2 * 7 * 28, "A and B of seven layers in each of 28"
    assert {gradient.dtype for gradient in found.gradients} == {torch.float32}


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory, model_path: str) -> Path:
    """The 2B model's configuration, the tiny model's tokenizer, and the real bound of images."""
    from transformers import AutoProcessor, Qwen2VLConfig

    folder = tmp_path_factory.mktemp("qwen")
    processor = AutoProcessor.from_pretrained(model_path)
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    ids = {key: processor.tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}
    Qwen2VLConfig(
        **QWEN2_VL_2B, **ids, architectures=["Qwen2VLForConditionalGeneration"]
    ).save_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    processor.save_pretrained(folder)
    return folder


def engines_on(
    folder: Path, tmp_path: Path, capability: str, gib: float, cache: int | None = None
) -> subprocess.CompletedProcess[str]:
    config = load_config(RECIPE)
    kept = tmp_path / "sampler-0.cache"
    if cache is not None:
        kept.write_text(str(cache))
    settings = SamplerSettings(
        str(folder),
        "cuda",
        "bfloat16",
        8,
        config.rollout,
        "",
        config.data.max_pixels,
        cache_file=str(kept),
    )
    (tmp_path / "settings").write_bytes(pickle.dumps(settings))
    command = [sys.executable, "-m", "tests.vllm_on_cuda", capability, str(gib)]
    return subprocess.run(
        [*command, str(tmp_path / "settings")],
        cwd=REPOSITORY,
        env=environment() | sampler_environment("cuda", 0) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize(("capability", "gib"), [("8.0", 39.4), ("8.9", 23.6)])
def test_vllm_takes_the_samplers_arguments_on_a_card(
    qwen_folder: Path, tmp_path: Path, capability: str, gib: float
) -> None:
    """An A100, and an RTX 4090: with which runner, kernels, head and room for images."""
    done = engines_on(qwen_folder, tmp_path, capability, gib, cache=3_000_000_000)
    assert done.returncode == 0, done.stderr[-2000:]
    own, unbounded = json.loads(done.stdout.splitlines()[-1])
    assert (own["platform"], own["v2_runner"], own["chunked_prefill"]) == ("cuda", True, True)
    assert own["head_dtype"] == "torch.float32"
    assert own["lora_dtype"] == "torch.bfloat16"
    assert own["attention"][0] == "FLASH_ATTN"
    assert own["graphs"].endswith("FULL_AND_PIECEWISE")
    assert own["batched_tokens"] == own["encoder_tokens"] == BATCHED_TOKENS, "as is planned with"
    assert own["image_tokens"] == 512, "the recipe's largest image is what vLLM makes room for"
    assert unbounded["image_tokens"] == 16384
    assert own["cache_bytes"] == 3_000_000_000


@pytest.mark.long
def test_a_card_without_bfloat16_is_refused_by_vllm_too(qwen_folder: Path, tmp_path: Path) -> None:
    """A T4, which `rarl` refuses before."""
    done = engines_on(qwen_folder, tmp_path, "7.5", 15.0)
    assert done.returncode != 0
    assert "Bfloat16 is only supported on GPUs with compute capability" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("python", "compiled"), [("3.11", []), ("3.12", []), ("3.13", []), ("3.14", ["pyjpegls"])]
)
def test_the_gpu_builds_packages_go_together(
    python: str, compiled: list[str], tmp_path: Path
) -> None:
    """With wheels, but for those that are compiled, for a distribution of 2020 or newer; nothing is
    installed. The CUDA of the result is the one that the check of the driver is for."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not here (pip install uv): the packages' versions were not resolved")
    done = subprocess.run(
        [
            *(uv, "pip", "compile", "--quiet", "--no-config"),
            *("--python-version", python, "--python-platform", "x86_64-manylinux_2_31"),
            *("--only-binary", ":all:", *(f"--no-binary={name}" for name in compiled)),
            *("--extra", "gpu", "--extra", "dev"),
            str(REPOSITORY / "pyproject.toml"),
        ],
        cwd=tmp_path,
        # From the index that uv has by itself: a machine's own may have the CPU's builds alone.
        env={k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if re.search(r"Failed to fetch|error sending request|Network connectivity", done.stderr):
        pytest.skip(f"no index can be reached, nothing was resolved: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==([\w.]+)", done.stdout, flags=re.MULTILINE))
    pinned = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (vllm,) = (one for one in pinned["optional-dependencies"]["gpu"] if one.startswith("vllm"))
    assert f"vllm=={found['vllm']}" == vllm
    assert found["torch"] == "2.13.0"
    assert found["cuda-toolkit"].startswith("13.0."), "see rarl/system/gpu.py: OLDEST_DRIVER"
