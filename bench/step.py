"""Seconds of a whole training step, generation to published adapter: RARL and TRL side by side.

    python bench/step.py [--json FILE] [--case tiny|middle]
    python bench/step.py --device cuda --tokenizer QWEN2_VL_FOLDER

Phantom questions, the same rewards, adapter and machine; medians over the steps after the first
ones. The tiny model answers with its own rewards. The middle one, that of `update.py`, is random:
its pictures are enlarged to prompts of some 400 tokens, it fills its 200, and its reward is chance,
so that groups have something to learn from. RARL runs as `rarl train` does, with Ray, Ray Data and
two vLLM engines; TRL runs as its own trainer does: tuned, once generating with transformers and
once with vLLM, and with its defaults; on the middle model tuned with transformers alone, since
vLLM's CPU build packs the weights of that size, and TRL cannot load others over them. Ratios are
to the faster of the tuned ones. With `--device cuda`, RARL alone, on a random Qwen2-VL-2B.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from measure import write_rows
from rich.console import Console
from rich.table import Table
from runs import RARL, environment, finished

from rarl.planning.sizes import IMAGE_TOKEN_PIXELS
from rarl.tiny.dataset import base_model


@dataclass(frozen=True)
class StepCase:
    """`prompts` x `group` completions of at most `max_tokens` a step, with their prompts of at
    most `max_length`, over `steps` steps of which the first `warm_up` do not count; TRL passes
    `batch` of them through the model at once when it is tuned."""

    name: str
    prompt: int
    prompts: int
    group: int
    max_tokens: int
    batch: int
    max_length: int
    steps: int
    warm_up: int


# All completions in one forward pass is the fastest for so small a model; at the middle one a
# group is as fast, and fits into memory.
TINY = StepCase("tiny", 60, 16, 8, 48, batch=128, max_length=256, steps=12, warm_up=3)
MIDDLE = StepCase("middle", 405, 4, 8, 200, batch=8, max_length=1024, steps=5, warm_up=2)
MIDDLE_IMAGE_TOKENS = 340
# What vLLM says on a processor with AMX, for which it packs the weights of the smallest model too.
PACKED = "Attempted to load weight"
CHANCE = "cases:chance_reward"
SPECIAL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def rarl_step(case: StepCase, overrides: list[str], device: str) -> dict[str, Any]:
    """Medians of a real run's own metrics, and on a GPU the most memory that all its processes
    together held."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [RARL, "train", "configs/recipes/tiny/rl.yaml", f"run_dir={run}"]
        command += [f"train.steps={case.steps}", f"train.checkpoint_every={case.steps}"]
        command += [f"train.prompts_per_step={case.prompts}", f"rollout.group_size={case.group}"]
        command += [f"rollout.max_completion_tokens={case.max_tokens}"]
        command += [f"rollout.max_model_length={case.max_length}"]
        command += ["data.eval={}", "grpo.kl_beta=0", *overrides]
        memory = GpuMemory() if device == "cuda" else None
        finished(command)
        lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][case.warm_up :]
    keys = [key for key in rows[0] if key.startswith("seconds/")]
    keys += ["completion_tokens/total", "published_bytes", "groups_without_spread"]
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


def trl_step(
    case: StepCase, model: Path, tuned: bool = True, use_vllm: bool = False
) -> dict[str, Any]:
    """In a process of its own, with as many threads as there are cores."""
    call = (
        f"trl_steps(StepCase(**{asdict(case)}), {str(model)!r}, tuned={tuned}, "
        f"use_vllm={use_vllm}, by_chance={case == MIDDLE})"
    )
    code = (
        "import json; from step import StepCase; from trl_baseline import trl_steps; "
        f"print(json.dumps({call}))"
    )
    # A bound on the cache of vLLM's CPU build; without effect where it is not used.
    own = environment() | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    place = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if use_vllm and PACKED in done.stderr:
            print("TRL cannot load its weights into vLLM, which packs those of any size here")
            return {}
        sys.exit(f"TRL: {done.stderr[-2000:]}")
    (line,) = (
        line for line in done.stdout.splitlines() if line.startswith("[") and line.endswith("]")
    )
    return {"step": statistics.median(json.loads(line)[case.warm_up :])}


def random_2b(folder: Path, tokenizer: Path, image_tokens: int | None = None) -> None:
    """Saves a random Qwen2-VL-2B of bfloat16 weights as a model folder, with the tokenizer and
    processor of `tokenizer`; with `image_tokens`, small images are enlarged to at least so many."""
    save_random("2b", folder, tokenizer, torch.bfloat16, image_tokens)


def random_middle(folder: Path) -> None:
    """Saves the random middle model in float32, with the tiny model's tokenizer and processor."""
    save_random("middle", folder, base_model(), torch.float32, MIDDLE_IMAGE_TOKENS)


def save_random(
    kind: str, folder: Path, tokenizer: Path, dtype: torch.dtype, image_tokens: int | None
) -> None:
    """Made on the CPU: what this process took of a GPU, the run that is measured would lack."""
    from cases import model_config
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tokenizer)
    config, ids = model_config(kind, None), processor.tokenizer.convert_tokens_to_ids
    # A word for every entry of the head: what is sampled can be read.
    missing = config.text_config.vocab_size - len(processor.tokenizer)
    if kind == "middle":
        processor.tokenizer.add_tokens([f" w{number}" for number in range(missing)])
    for key, token in SPECIAL.items():
        setattr(config, f"{key}_id", ids(token))
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    if image_tokens is not None:
        area = image_tokens * IMAGE_TOKEN_PIXELS
        processor.image_processor.size = {"shortest_edge": area, "longest_edge": 4 * area}
    processor.save_pretrained(folder)


def show(case: StepCase, rows: list[dict[str, Any]]) -> None:
    size = f"{case.prompts} prompts x {case.group} answers, {os.cpu_count()} cores"
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
    tokens, count = own["completion_tokens/total"], case.prompts * case.group
    print(f"{own['tokens_per_second']:.0f} completion tokens/s, {tokens / count:.0f} a completion")
    print(f"groups without spread: {100 * own['groups_without_spread']:.0f} %")
    if "stack_peak_mb" in own:
        print(f"GPU memory of all processes together {own['stack_peak_mb']:.0f} MB")


def measured_2b(tokenizer: Path) -> list[dict[str, Any]]:
    overrides = ["device=cuda", "model.dtype=bfloat16", "rollout.num_actors=1"]
    overrides += ["rollout.max_completion_tokens=200", "rollout.max_model_length=1024"]
    with tempfile.TemporaryDirectory() as folder:
        random_2b(Path(folder), tokenizer)
        found = rarl_step(TINY, [f"model.path={folder}", *overrides], "cuda")
    return [{"system": "RARL", **found}]


def measured_tiny() -> list[dict[str, Any]]:
    stale = rarl_step(TINY, ["rollout.max_staleness=1"], "cpu")
    # A thread each: what TRL's one process has of the two cores, too.
    both = rarl_step(TINY, ["train.num_workers=2"], "cpu")
    return [
        {"system": "RARL", **rarl_step(TINY, [], "cpu")},
        {"system": "RARL, two train workers", **both},
        {"system": "RARL, staleness 1", **stale},
        {"system": "TRL tuned", **trl_step(TINY, base_model())},
        {"system": "TRL tuned, vLLM", **trl_step(TINY, base_model(), use_vllm=True)},
        {"system": "TRL defaults", **trl_step(TINY, base_model(), tuned=False)},
    ]


def measured_middle() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        random_middle(model)
        overrides = [f"model.path={model}", "rewards={" + CHANCE + ": 1}"]
        return [
            {"system": "RARL", **rarl_step(MIDDLE, overrides, "cpu")},
            {"system": "TRL tuned", **trl_step(MIDDLE, model)},
        ]


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there")] = None,
    case: Literal["tiny", "middle"] = "tiny",
    device: str = "cpu",
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of Qwen2-VL's processor, for --device cuda")
    ] = None,
) -> None:
    size = MIDDLE if case == "middle" else TINY
    if device == "cuda":
        if tokenizer is None:
            sys.exit("--device cuda needs --tokenizer, the folder of Qwen2-VL's processor files")
        rows = measured_2b(tokenizer)
    else:
        found = measured_middle() if case == "middle" else measured_tiny()
        rows = [row for row in found if "step" in row]
        fastest = min(row["step"] for row in rows if row["system"].startswith("TRL tuned"))
        for row in rows:
            row["ratio_to_trl_tuned"] = fastest / row["step"]
    for row in rows:
        row |= {
            "case": f"step, {case}",
            "prompt": size.prompt,
            "completion": size.max_tokens,
            "group": size.group,
            "seconds": row["step"],
        }
    show(size, rows)
    write_rows(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
