"""Seconds of a whole training step, generation to published adapter: RARL and TRL side by side.

    python bench/step.py [--json FILE] [--steps 12]
    python bench/step.py --device cuda --tokenizer QWEN2_VL_FOLDER

The tiny model, phantom questions, 16 prompts x 8 answers, the same rewards, adapter and machine;
medians over the steps after the first three. RARL runs as `rarl train` does, with Ray, Ray Data and
two vLLM engines; TRL runs as its own trainer does: tuned, once generating with transformers and
once with vLLM, and with its defaults. Ratios are to the faster of the tuned two. With `--device
cuda`, RARL alone, on a random Qwen2-VL-2B.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measure import write_rows
from rich.console import Console
from rich.table import Table

from rarl.planning.sizes import IMAGE_TOKEN_PIXELS

REPOSITORY = Path(__file__).resolve().parent.parent
PROMPTS, GROUP, MAX_TOKENS, WARM_UP = 16, 8, 48, 3
SPECIAL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def rarl_step(steps: int, overrides: list[str], device: str) -> dict[str, Any]:
    """Medians of a real run's own metrics, and on a GPU the most memory that all its processes
    together held."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            str(Path(sys.executable).parent / "rarl"),
            "train",
            "configs/recipes/tiny/rl.yaml",
            f"run_dir={run}",
        ]
        command += [
            f"train.steps={steps}",
            f"train.prompts_per_step={PROMPTS}",
            f"rollout.group_size={GROUP}",
        ]
        command += ["data.eval={}", "grpo.kl_beta=0", f"train.checkpoint_every={steps}", *overrides]
        memory = GpuMemory() if device == "cuda" else None
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"rarl: {done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][
            WARM_UP:
        ]
    keys = [key for key in rows[0] if key.startswith("seconds/")] + [
        "completion_tokens/total",
        "published_bytes",
    ]
    found = {
        key.removeprefix("seconds/"): statistics.median(row[key] for row in rows) for key in keys
    }
    found["tokens_per_second"] = sum(r["completion_tokens/total"] for r in rows) / sum(
        r["seconds/step"] for r in rows
    )
    return found | ({"stack_peak_mb": memory.stop()} if memory else {})


class GpuMemory:
    """Watches how much of the GPU is taken, whoever takes it."""

    def __init__(self) -> None:
        self.read = torch.cuda.mem_get_info
        self.start, self.peak, self.running = self.used(), 0.0, True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def used(self) -> float:
        free, total = self.read()
        return (total - free) / 2**20

    def watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.used() - self.start)
            time.sleep(0.1)

    def stop(self) -> float:
        self.running = False
        self.thread.join()
        return self.peak


def trl_step(steps: int, tuned: bool, use_vllm: bool = False) -> dict[str, Any]:
    """In a process of its own, with as many threads as there are cores."""
    call = (
        f"trl_steps({steps}, {PROMPTS}, {GROUP}, {MAX_TOKENS}, tuned={tuned}, use_vllm={use_vllm})"
    )
    code = f"import json; from trl_baseline import trl_steps; print(json.dumps({call}))"
    place = str(Path(__file__).parent)
    # A bound on the cache of vLLM's CPU build; without effect where it is not used.
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"TRL: {done.stderr[-2000:]}")
    (line,) = (
        line for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")
    )
    return {"step": statistics.median(json.loads(line)[WARM_UP:])}


def random_2b(folder: Path, tokenizer: Path, image_tokens: int | None = None) -> None:
    """Saves a random Qwen2-VL-2B of bfloat16 weights as a model folder, with the tokenizer and
    processor of `tokenizer`; with `image_tokens`, small images are enlarged to at least so many.
    Made on the CPU: what this process took of a GPU, the run that is measured would lack."""
    from cases import model_config
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tokenizer)
    config, ids = model_config("2b", None), processor.tokenizer.convert_tokens_to_ids
    for key in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        setattr(config, f"{key}_id", ids(SPECIAL[key]))
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if image_tokens is not None:
        area = image_tokens * IMAGE_TOKEN_PIXELS
        processor.image_processor.size = {"shortest_edge": area, "longest_edge": 4 * area}
    processor.save_pretrained(folder)


def show(rows: list[dict[str, Any]]) -> None:
    size = f"{PROMPTS} prompts x {GROUP} answers, {os.cpu_count()} cores"
    table = Table(title=f"one step, {size}; medians, seconds")
    phases = ("step", "data", "rollout", "reward", "update", "publish", "other")
    for column in ("system", *phases, "TRL / this"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in rows:
        cells = [f"{row[name]:.3f}" if name in row else "" for name in phases]
        ratio = f"{row['ratio_to_trl_tuned']:.2f}" if row.get("ratio_to_trl_tuned") else ""
        table.add_row(row["system"], *cells, ratio)
    Console(width=110).print(table)
    own = rows[0]
    rest = own["data"] + own["publish"] + own["other"]
    share = 100 * own["publish"] / own["step"]
    print(f"publish {share:.1f} % of a step, {own['published_bytes']:.0f} adapter bytes")
    print(f"all but generation, reward and update {100 * rest / own['step']:.1f} %")
    print(f"{own['tokens_per_second']:.0f} completion tokens/s")
    if "stack_peak_mb" in own:
        print(f"GPU memory of all processes together {own['stack_peak_mb']:.0f} MB")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
    steps: int = 12,
    device: str = "cpu",
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of Qwen2-VL's processor, for --device cuda")
    ] = None,
) -> None:
    if device == "cuda":
        if tokenizer is None:
            sys.exit("--device cuda needs --tokenizer, the folder of Qwen2-VL's processor files")
        with tempfile.TemporaryDirectory() as folder:
            random_2b(Path(folder), tokenizer)
            overrides = [
                "device=cuda",
                f"model.path={folder}",
                "model.dtype=bfloat16",
                "rollout.num_actors=1",
            ]
            overrides += ["rollout.max_completion_tokens=200", "rollout.max_model_length=1024"]
            rows = [{"system": "RARL", **rarl_step(steps, overrides, device)}]
    else:
        rows = [
            {"system": "RARL", **rarl_step(steps, [], device)},
            {
                "system": "RARL, staleness 1",
                **rarl_step(steps, ["rollout.max_staleness=1"], device),
            },
            {"system": "TRL tuned", **trl_step(steps, tuned=True)},
            {"system": "TRL tuned, vLLM", **trl_step(steps, tuned=True, use_vllm=True)},
            {"system": "TRL defaults", **trl_step(steps, tuned=False)},
        ]
        fastest = min(row["step"] for row in rows if row["system"].startswith("TRL tuned"))
        for row in rows:
            row["ratio_to_trl_tuned"] = fastest / row["step"]
    for row in rows:
        row |= {
            "case": "step",
            "prompt": 60,
            "completion": MAX_TOKENS,
            "group": GROUP,
            "seconds": row["step"],
        }
    show(rows)
    write_rows(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
