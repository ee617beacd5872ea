"""Seconds and peak memory of one GRPO update: plain pass, TRL's, and the shared prefix, side by
side.

    python bench/update.py [--json FILE] [--case short …]
                           [--device cuda --tokenizer QWEN2_VL_FOLDER]

Loss and backward of one group, same model, prompt, completions, dtype, adapter and threads. Every
measurement is made in a process of its own: the first call's memory, then the fastest of the
following calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cases import CASES, Case, make_group, make_policy
from measure import matmul_gflops, peak_memory_mb, seconds, write_rows
from rich.console import Console
from rich.table import Table

from rarl.planning.sizes import update_flops

SYSTEMS = ("shared prefix", "TRL tuned", "plain pass")


def rarl_update(
    policy: Any, group: Any, advantages: torch.Tensor, shared: bool
) -> Callable[[], None]:
    """RARL's loss and backward with one of its forward passes."""
    from rarl.config import GrpoConfig
    from rarl.distribution import MODEL_SOFTMAX
    from rarl.grpo.forward import VisionCache, plain_forward, use_patch_projection
    from rarl.grpo.loss import LossInputs, StepTotals, compute_loss
    from rarl.grpo.shared_prefix import SharedPrefixForward

    model = policy.get_base_model()
    # `load_policy` does so too.
    if isinstance(model.model.visual.patch_embed.proj, torch.nn.Conv3d):
        use_patch_projection(model)
    forward = SharedPrefixForward() if shared else plain_forward
    config = GrpoConfig(importance="none")
    count, length = len(group.completions), len(group.completions[0])
    totals = StepTotals(count, count * length, length)

    def update() -> None:
        out = forward(policy, [group], MODEL_SOFTMAX, VisionCache())
        old = out.logprobs.detach()
        mask = torch.ones_like(old, dtype=torch.bool)
        inputs = LossInputs(out.logprobs, old, old, None, advantages.to(old.device), mask)
        compute_loss(inputs, totals, config).loss.backward()

    return update


def measure_one(
    case: Case, system: str, device: str, repeats: int, vocabulary: int | None
) -> dict[str, Any]:
    """In this process: one system on one case."""
    if device == "cpu":
        torch.set_num_threads(1)
    policy = make_policy(
        "2b" if device == "cuda" and case.model == "middle" else case.model, device, vocabulary
    )
    config = policy.get_base_model().config
    group = make_group(case, config)
    advantages = torch.linspace(-1, 1, case.group)
    if system == "TRL tuned":
        from trl_baseline import trl_update

        update = trl_update(policy, group, advantages)
    else:
        update = rarl_update(policy, group, advantages, shared=system == "shared prefix")
    peak = peak_memory_mb(update, device)
    policy.zero_grad()
    times = seconds(update, device, repeats)
    norm = (
        torch.stack(
            [p.grad.float().norm() for p in policy.parameters() if p.grad is not None]
        ).norm()
        / repeats
    )
    speed = matmul_gflops(torch.bfloat16 if device == "cuda" else torch.float32, device)
    return {
        "case": case.name,
        "system": system,
        "prompt": case.prompt,
        "completion": case.completion,
        "group": case.group,
        "seconds": min(times),
        "all_seconds": times,
        "peak_mb": peak,
        "tokens_per_second": case.group * case.completion / min(times),
        "gradient_norm": norm.item(),
        "bound_seconds": update_flops(case.shape, config) / speed / 1e9,
        "matmul_gflops": speed,
        "device": device,
    }


def show_profile(case: Case) -> None:
    """Where the shared-prefix update's time goes, by PyTorch's profiler, after three calls."""
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    policy = make_policy(case.model, "cpu")
    group = make_group(case, policy.get_base_model().config)
    update = rarl_update(policy, group, torch.linspace(-1, 1, case.group), shared=True)
    seconds(update, "cpu", 3)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        update()
    print(
        profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60
        )
    )


def in_own_process(case: str, system: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", case, "--only", system, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{case}, {system}: {done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="one update of one group; fastest of the repeats")
    for column in (
        "(P, C, G)",
        "system",
        "seconds",
        "TRL / this",
        "peak MB",
        "TRL's / this",
        "of the bound",
    ):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in rows:
        shape = f"({row['prompt']}, {row['completion']}, {row['group']})"
        bound = (
            f"{100 * row['bound_seconds'] / row['seconds']:.0f} %"
            if row["system"] == "shared prefix"
            else ""
        )
        ratios = (f"{row['ratio_to_trl_tuned']:.2f}", f"{row['memory_ratio_to_trl_tuned']:.1f}")
        seconds_, peak = f"{row['seconds']:.3f}", f"{row['peak_mb']:.0f}"
        table.add_row(shape, row["system"], seconds_, ratios[0], peak, ratios[1], bound)
    Console(width=110).print(table)


def main(
    case: Annotated[
        list[str] | None, typer.Option(help=f"of {', '.join(CASES)}; all by default")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
    repeats: int = 3,
    device: str = "cpu",
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of Qwen2-VL's tokenizer, for --device cuda")
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="instead, where the time of the first case's update goes")
    ] = False,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    names = case or list(CASES)
    if profile:
        show_profile(CASES[names[0]])
        return
    if only is not None:
        vocabulary = None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            vocabulary = -(-len(AutoTokenizer.from_pretrained(tokenizer)) // 128) * 128
        print(json.dumps(measure_one(CASES[names[0]], only, device, repeats, vocabulary)))
        return
    arguments = ["--repeats", str(repeats), "--device", device]
    arguments += ["--tokenizer", str(tokenizer)] if tokenizer else []
    rows = []
    for name in names:
        found = {system: in_own_process(name, system, arguments) for system in SYSTEMS}
        trl = found["TRL tuned"]
        for row in found.values():
            row["ratio_to_trl_tuned"] = trl["seconds"] / row["seconds"]
            row["memory_ratio_to_trl_tuned"] = trl["peak_mb"] / row["peak_mb"]
            rows.append(row)
        show(rows[-len(SYSTEMS) :])
        write_rows(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
