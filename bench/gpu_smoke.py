"""Whether everything works on this machine's GPU, step by step: what to attach to a report.

    make gpu-smoke
    .venv-gpu/bin/python bench/gpu_smoke.py [--tokenizer QWEN2_VL_FOLDER] [--out gpu-smoke.txt]
    .venv/bin/python bench/gpu_smoke.py --device cpu         # the same steps without a GPU

The checks of driver, card and machine; five steps of the tiny model; three of a random Qwen2-VL-2B
with its 151,936 tokens; `bench/update.py` and `bench/step.py`; and a served adapter, asked once.
One line for each, `pass`, `fail` or `skip`, and below it what was found. Without `--tokenizer` the
random model speaks the tiny model's words. Exit code 1 where a line says `fail`.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import httpx
import typer
from cases import computes_bfloat16
from serving import free_port
from step import random_2b
from tree_memory import kind_of, run_watched

from rarl.config import load_config
from rarl.planning.memory import CONTEXT_GIB, GIB
from rarl.planning.plan import make_plan
from rarl.system.gpu import DriverError, all_faults, ask_driver
from rarl.tiny.dataset import base_model, draw_examples

REPOSITORY = Path(__file__).resolve().parent.parent
RARL = str(Path(sys.executable).parent / "rarl")
PACKAGES = ("torch", "ray", "transformers", "peft")
START_SECONDS = 900  # until the service is up
# Of the random model: on a GPU the recipe's own sizes, on a CPU what two cores can do in minutes.
ON_CPU = ["train.prompts_per_step=2", "rollout.group_size=4", "rollout.max_completion_tokens=24"]
IMAGE_TOKENS = {"cuda": 480, "cpu": 100}


class Report:
    """The lines, on the terminal and in the file that is rewritten with each."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.failed = path, list[str](), False

    def write(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def step(self, name: str, work: Callable[[], list[str]]) -> None:
        """Writes whether `work` comes to its end, and what it returns or raises."""
        started = time.monotonic()
        try:
            verdict, found = "pass", work()
        except Skipped as reason:
            verdict, found = "skip", [str(reason)]
        # Whatever goes wrong is what the report is for.
        except Exception as error:
            verdict, found, self.failed = "fail", str(error).splitlines()[-25:], True
        self.write(f"{verdict}  {name} ({time.monotonic() - started:.0f} s)")
        for line in found:
            self.write(f"      {line}")


class Skipped(Exception):
    """The step cannot be made here, and why."""


def machine() -> list[str]:
    """Returns what is known of the machine and the packages."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    found = [f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"]
    try:
        fields = ("name", "driver_version", "compute_cap", "memory.total", "memory.free")
        found += [f"GPU: {', '.join(row)} MiB free" for row in ask_driver(*fields)]
    except DriverError as error:
        found.append(f"GPU: none ({error})")
    return [*found, packages]


def checks(device: str) -> list[str]:
    if device == "cpu":
        raise Skipped("they are for a GPU")
    faults = all_faults()
    if faults:
        raise RuntimeError("\n".join(faults))
    return ["driver, compute capability, C compiler, Python.h, /dev/shm"]


class GpuMemory:
    """MiB of the GPU that each kind of process holds at most, as the driver tells it."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self.running = True
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        command = ["nvidia-smi", "--query-compute-apps=pid,used_memory"]
        while self.running:
            told = subprocess.run(
                [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True
            )
            for pid, used in re.findall(r"(\d+), (\d+)", told.stdout):
                kind = process_kind(pid)
                self.peak[kind] = max(self.peak.get(kind, 0.0), float(used))
            time.sleep(0.3)


def process_kind(pid: str) -> str:
    """Returns what kind of process of a run this is; its number where it is in another container's
    space."""
    try:
        return kind_of(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    except OSError:
        return f"process {pid}"


@contextmanager
def watching(device: str) -> Iterator[dict[str, float]]:
    """Yields what the kinds of processes hold of the GPU, in MiB; nothing on a CPU."""
    memory = GpuMemory()
    if device == "cuda":
        memory.thread.start()
    try:
        yield memory.peak
    finally:
        memory.running = False


def train(device: str, config: str, run: Path, overrides: list[str]) -> list[str]:
    """Trains as a user does. Returns what its own metrics and logs say, and its memory beside the
    plan's."""
    given = [f"run_dir={run}", f"device={device}", "data.eval={}", *overrides]
    with watching(device) as on_gpu:
        peak, _, done = run_watched(
            [RARL, "train", config, *given], str(REPOSITORY), {**os.environ}
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr or done.stdout)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = (run / "logs" / "train-worker.log").read_text()
    # It may be there more than once: Ray Train writes what is printed, too.
    check = re.findall(r"shared-prefix pass: \w+, difference from the plain pass: \S+", log)[-1]
    rate = sum(row["completion_tokens/total"] for row in rows) / sum(
        row["seconds/step"] for row in rows
    )
    phases = sorted(key for key in rows[0] if key.startswith("seconds/"))
    resident = peak.private | {"shared pages": peak.shared}
    seconds = {key: statistics.median(row[key] for row in rows) for key in phases}
    if rows[0]["shared_prefix"] != 1:
        raise RuntimeError(f"the shared-prefix pass was not used: {check}")
    return [
        f"{len(rows)} steps; {check}",
        f"mismatch of sampler and policy: mean {max(r['sampler_mismatch'] for r in rows):.2g}, "
        f"largest {max(r['sampler_mismatch/max'] for r in rows):.2g}",
        f"{rate:.0f} completion tokens/s; median seconds: "
        + ", ".join(f"{key.removeprefix('seconds/')} {seconds[key]:.3f}" for key in phases),
        *memory_lines(device, config, given, on_gpu or resident),
    ]


def memory_lines(
    device: str, config: str, overrides: list[str], measured: dict[str, float]
) -> list[str]:
    """Returns MiB by kind of process, as the driver or the kernel tells it, and as planned."""
    plan = make_plan(load_config(REPOSITORY / config, overrides))
    if plan.memory is not None:
        context = CONTEXT_GIB * GIB / 2**20
        planned = {
            "train worker": sum(plan.memory.trainer.values()) * 1024 + context,
            "sampler": plan.memory.sampler_share * 1024 + context,
        }
    else:
        planned = {kind: one.total for kind, one in (plan.processes or {}).items()}
    where = "of the GPU" if device == "cuda" else "private"
    rows = {kind: f"{mib:.0f}" for kind, mib in measured.items()}
    return [
        f"MiB {where}, {kind}: {rows.get(kind, 'not seen')}, planned {mib:.0f}"
        for kind, mib in planned.items()
    ] + [f"MiB {where}, {kind}: {mib}" for kind, mib in rows.items() if kind not in planned]


def train_tiny(device: str, run: Path) -> list[str]:
    sizes = ["train.steps=5", "train.prompts_per_step=4", "rollout.num_actors=1"]
    return train(device, "configs/demo.yaml", run, sizes)


def train_2b(device: str, folder: Path, tokenizer: Path) -> list[str]:
    """A random model, of which no reply ends by itself: the longest replies, so the most memory."""
    if device == "cpu" and not computes_bfloat16():
        raise Skipped("this CPU has no bfloat16 instructions, and would take hours")
    random_2b(folder / "2b", tokenizer, IMAGE_TOKENS[device])
    overrides = [f"model.path={folder / '2b'}", "data.train=rarl.tiny.dataset:write_train"]
    overrides += ["train.steps=3", "train.checkpoint_every=3"]
    overrides += [] if device == "cuda" else [*ON_CPU, "rollout.max_model_length=512"]
    return train(device, "configs/recipes/qwen2vl_2b/rl.yaml", folder / "run-2b", overrides)


def benchmarks(device: str, tokenizer: Path) -> dict[str, list[str]]:
    """Returns the benchmarks of this folder that are run, each with its arguments."""
    case = "medium" if device == "cuda" else "tiny"
    return {
        "update.py": ["--device", device, "--case", case],
        "step.py": ["--device", device, "--tokenizer", str(tokenizer)],
    }


def benchmark(name: str, arguments: list[str]) -> list[str]:
    """Runs a benchmark of this folder; returns what it prints."""
    command = [sys.executable, str(REPOSITORY / "bench" / name), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout.splitlines()


def ask_served(run: Path) -> list[str]:
    """Serves the tiny run and asks it one question about an image."""
    if not (run / "adapter").is_dir():
        raise Skipped("there is no adapter to serve, since the tiny model was not trained")
    port, log = free_port(), run.parent / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [RARL, "serve", str(run), f"--port={port}"],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C ends it" not in log.read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.5)
        example = draw_examples("seen", 1, 0, "test")[0]
        image = base64.b64encode(example.images[0]).decode()
        body = {"image": image, "question": example.question, "options": example.options}
        url = f"http://127.0.0.1:{port}/v1/answer"
        reply = httpx.post(url, json={k: v for k, v in body.items() if v}, timeout=300)
        reply.raise_for_status()
        said = reply.json()
        return [f"{example.question} → {said['answer']} ({len(said['samples'])} samples)"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(300)


def main(
    device: str = "cuda",
    out: Annotated[Path, typer.Option(help="the file to attach")] = Path("gpu-smoke.txt"),
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder of Qwen2-VL's processor, for the random model")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="leave a step out: tiny, 2b, update, step, serve")
    ] = None,
) -> None:
    report, left_out = Report(out), skip or []
    report.write(f"rarl gpu-smoke --device {device}, {time.strftime('%Y-%m-%d %H:%M:%S')}")
    speech = tokenizer or base_model()
    update, step = benchmarks(device, speech).values()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "tiny"
        steps: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "machine": ("machine", machine),
            "checks": ("checks", lambda: checks(device)),
            "tiny": ("tiny model, five steps", lambda: train_tiny(device, run)),
            "2b": (
                "random Qwen2-VL-2B, three steps",
                lambda: train_2b(device, folder, speech),
            ),
            "update": ("bench/update.py", lambda: benchmark("update.py", update)),
            "step": ("bench/step.py", lambda: benchmark("step.py", step)),
            "serve": ("a served adapter, asked once", lambda: ask_served(run)),
        }
        for key, (title, work) in steps.items():
            if key in left_out:
                report.write(f"skip  {title}: left out by --skip")
            else:
                report.step(title, work)
    report.write("FAIL" if report.failed else "PASS")
    print(f"written to {out}")
    sys.exit(int(report.failed))


if __name__ == "__main__":
    typer.run(main)
