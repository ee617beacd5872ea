"""The update alone on a GPU, with PyTorch, transformers and PEFT and without Ray and vLLM.

    python bench/gpu_update.py [--device cpu] [--out gpu-update.json]

Where nothing else of RARL's is installed: from the repository's root, with no more than the three
packages. First, whether the shared-prefix pass gives the plain pass's log-probs and gradients, for
small random models of all three families, in float32 and bfloat16. Then seconds, the share of the
card's own matmul rate, and peak memory beside the plan's for a random Qwen2-VL-2B, and TRL beside
it where TRL is installed. With `--device cpu` the tiny model takes the 2B's place. Exit code 1
where a pass differs, or memory is more than planned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from cases import Case, make_group, make_policy  # noqa: E402
from measure import matmul_gflops, peak_memory_mb, seconds, write_rows  # noqa: E402

from rarl.distribution import MODEL_SOFTMAX, SamplingDistribution  # noqa: E402
from rarl.grpo.forward import VisionCache, plain_forward, use_patch_projection  # noqa: E402
from rarl.grpo.policy import adapter_parameters  # noqa: E402
from rarl.grpo.shared_prefix import SharedPrefixForward  # noqa: E402
from rarl.planning.sizes import activation_bytes, update_flops  # noqa: E402
from tests.random_models import random_group, random_policy  # noqa: E402

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DRAWS = 6  # of groups, for each family and dtype
# Of the mean |log-prob difference|, and of |gradient difference| / |gradient|.
BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-2, 2e-1)}
REPEATS = 5
CASES = {
    "cuda": [Case("medium", "2b", 800, 200, 8, 48), Case("recipe", "2b", 612, 512, 8, 44)],
    "cpu": [Case("tiny", "tiny", 60, 40, 8, 8)],
}
HEAD_MB = {"cuda": 3 * 256, "cpu": 2 * 8}  # see rarl/planning/memory.py


def difference(family: str, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Returns the largest of the draws' mean |log-prob difference| and of their relative
    differences of the gradient, of the shared-prefix pass to the plain one."""
    policy = random_policy(family)
    for tensor in policy.parameters():
        if not tensor.requires_grad:
            tensor.data = tensor.data.to(dtype)
    policy.to(device)
    rng, distribution = np.random.default_rng(0), SamplingDistribution(0.8, [290, 291])
    logprob = gradient = 0.0
    for draw in range(DRAWS):
        groups = []
        for key in range(1 + draw % 3):
            rows, columns, before, after = rng.integers(1, 4, 4).tolist()
            lengths = rng.integers(1, 25, 4).tolist()
            groups.append(
                random_group(rng, [(2 * rows, 2 * columns)], (before, after), lengths, key)
            )
        passes = []
        for forward in (plain_forward, SharedPrefixForward(checkpointing=draw % 2 == 1)):
            out = forward(policy, groups, distribution, VisionCache()).logprobs
            (out * torch.linspace(-1, 1, len(out), device=device)[:, None]).sum().backward()
            grads = [p.grad.flatten() for p in adapter_parameters(policy) if p.grad is not None]
            passes.append((out.detach(), torch.cat(grads)))
            policy.zero_grad()
        (plain, plain_grad), (shared, shared_grad) = passes
        tokens = sum(len(c) for group in groups for c in group.completions)
        logprob = max(logprob, ((plain - shared).abs().sum() / tokens).item())
        relative = (plain_grad - shared_grad).norm() / plain_grad.norm()
        gradient = max(gradient, relative.item())
    return logprob, gradient


def rarl_update(policy: Any, group: Any) -> Callable[[], None]:
    """Returns forward and backward pass with the gradient of GRPO's loss at a step's first pass,
    where the ratio is 1."""
    use_patch_projection(policy.get_base_model())
    advantages = torch.linspace(-1, 1, len(group.completions), device=policy.device)
    forward = SharedPrefixForward()

    def update() -> None:
        out = forward(policy, [group], MODEL_SOFTMAX, VisionCache())
        (-(out.logprobs.mean(1) * advantages).mean()).backward()

    return update


def measure(case: Case, device: str) -> dict[str, Any]:
    """Returns one case's figures; TRL's seconds and memory are None where TRL is not installed."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    policy = make_policy(case.model, device)
    config = policy.get_base_model().config
    group = make_group(case, config)
    update = rarl_update(policy, group)
    peak = peak_memory_mb(update, device)
    fastest = min(seconds(update, device, REPEATS))
    rate = matmul_gflops(dtype, device)
    tokens = case.prompt - 1 + case.group * case.completion
    kept = tokens * activation_bytes(config, False, dtype.itemsize) / 2**20
    row: dict[str, Any] = {
        "case": case.name,
        "shape": [case.prompt, case.completion, case.group],
        "seconds": fastest,
        "matmul_gflops": rate,
        "share_of_matmul_rate": update_flops(case.shape, config) / fastest / rate / 1e9,
        "peak_mb": peak,
        "planned_mb": kept + HEAD_MB[device],
        "trl_seconds": None,
        "trl_peak_mb": None,
    }
    try:
        from trl_baseline import trl_update
    except ImportError as error:
        print(f"skip  TRL beside it: {error}", flush=True)
        return row
    policy.zero_grad()
    beside = trl_update(policy, group, torch.linspace(-1, 1, case.group))
    row["trl_peak_mb"] = peak_memory_mb(beside, device)
    row["trl_seconds"] = min(seconds(beside, device, REPEATS))
    return row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The update alone, on a GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-update.json"))
    asked = parser.parse_args(arguments)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    failed, rows = False, list[dict[str, Any]]()
    for dtype, bounds in BOUNDS.items():
        for family in FAMILIES:
            found = difference(family, dtype, asked.device)
            wrong = not all(one <= bound for one, bound in zip(found, bounds, strict=True))
            failed |= wrong
            kind = str(dtype).removeprefix("torch.")
            rows.append({"family": family, "dtype": kind, "logprob": found[0], "grad": found[1]})
            print(
                f"{'fail' if wrong else 'pass'}  {family} {kind}: log-probs differ by "
                f"{found[0]:.1g} on average, gradients by {found[1]:.1g}",
                flush=True,
            )
    for case in CASES[asked.device]:
        row = measure(case, asked.device)
        rows.append(row | {"device": name})
        over = row["peak_mb"] > 1.2 * row["planned_mb"]
        failed |= over
        print(
            f"{'fail' if over else 'pass'}  {row['case']} {tuple(row['shape'])}: "
            f"{row['seconds']:.3f} s, {100 * row['share_of_matmul_rate']:.0f} % of the matmul rate "
            f"({row['matmul_gflops']:.0f} GFLOP/s), peak {row['peak_mb']:.0f} MB, planned "
            f"{row['planned_mb']:.0f}",
            flush=True,
        )
        if row["trl_seconds"]:
            times = row["trl_seconds"] / row["seconds"]
            print(f"      TRL: {row['trl_seconds']:.3f} s, {times:.2f} times as long", flush=True)
        write_rows(asked.out, rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
