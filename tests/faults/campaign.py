"""A run that is killed again and again, in seeded places, and continued by the same command.

    python -m tests.faults.campaign --kills 50 --seed 0 --out runs/faults

trains once undisturbed and once under fire, and compares: the same adapter to the last bit, the
same metrics, each step once. Kinds of kills: a sampler (vLLM actor), the train worker, a Ray Data
worker, the judge's process, the driver, Ray's node manager (raylet), and everything at once, as a
power cut does. All by SIGKILL.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rarl.training.log import read_metrics
from tests.judge_faults import free_port
from tests.runs import RARL, REPOSITORY, environment

# How often each kind is drawn: what is dear to start again, seldom.
KINDS = {
    "data": 9,
    "judge": 13,
    "sampler": 9,
    "trainer": 9,
    "driver": 4,
    "node": 2,
    "everything": 4,
}
TITLES = {
    "data": "ray::MapBatches",
    "sampler": "ray::Sampler",
    "trainer": "ray::RayTrainWorker",
    "node": "/raylet ",
}
SETTINGS = [
    "train.prompts_per_step=4",
    "train.max_restarts=100",
    "rollout.group_size=4",
    "rollout.num_actors=2",
    "rollout.max_completion_tokens=32",
    "data.eval={}",
    "judge.backend=serve",
    "judge.retries=20",
    "judge.on_unreachable=stop",
    "judge.cache=false",  # so that it is asked again, and may be away, after a restart
]
TIMES = ("seconds/",)  # metrics that no run has twice
EARLY = 0.15  # share of the kills that hit a run which is still recovering
FEWEST_STEPS = 48  # of fewer the data workers have read all before it is their turn
PATIENCE = 300  # seconds without a new step or process


@dataclass
class Campaign:
    """What was killed, by kind, and in which step."""

    folder: Path
    kills: int
    seed: int
    steps: int
    killed: Counter[str] = field(default_factory=Counter)
    at: list[tuple[str, int]] = field(default_factory=list)
    starts: int = 0

    def run(self) -> None:
        """The run under fire. Raises AssertionError when it ends otherwise than well."""
        rng = random.Random(self.seed)
        order = kinds_in_order(self.kills, rng)
        with judge_process(self.folder) as judge:
            process = self.start(judge)
            while True:
                wait_for_fire(process, rng, self.folder, bool(order))
                if process.poll() is None:
                    self.fire(order, process, judge)
                if process.poll() is not None:
                    if process.returncode == 0 and not order:
                        return
                    assert process.returncode != 0, (
                        f"finished before {len(order)} kills were made: make more steps"
                    )
                    process = self.start(judge)

    def start(self, judge: JudgeProcess) -> subprocess.Popen[bytes]:
        self.starts += 1
        assert self.starts <= self.kills + 5, (self.folder / "log").read_text()[-3000:]
        return start_run(self.folder / "run", self.steps, judge.port, self.folder / "log")

    def fire(self, order: list[str], process: subprocess.Popen[bytes], judge: JudgeProcess) -> None:
        """Kills the next in order of which there is one. Data workers end early in a run, so they
        take turns with the others while there are any."""
        first = [] if self.at and self.at[-1][0] == "data" else ["data"]
        for kind in [*[kind for kind in first if kind in order], *order]:
            if self.kill(kind, process, judge):
                order.remove(kind)
                return

    def kill(self, kind: str, process: subprocess.Popen[bytes], judge: JudgeProcess) -> bool:
        """False where there is nothing of that kind just now."""
        if kind == "judge":
            judge.kill()
        elif kind == "driver":
            process.kill()
        elif kind == "everything":
            for victim in [*family(process), psutil.Process(process.pid)]:
                end(victim)
            judge.kill()
        else:
            victims = [p for p in family(process) if TITLES[kind] in title_of(p)]
            if not victims:
                return False
            end(victims[len(self.at) % len(victims)])
        if kind in ("driver", "everything"):
            process.wait()
        self.killed[kind] += 1
        self.at.append((kind, last_step(self.folder / "run")))
        return True


def kinds_in_order(kills: int, rng: random.Random) -> list[str]:
    """Every kind at least once, where `kills` suffice, in the proportions of KINDS."""
    whole = sum(KINDS.values())
    kinds = [
        kind for kind, weight in KINDS.items() for _ in range(max(1, round(kills * weight / whole)))
    ]
    rng.shuffle(kinds)
    return (kinds * (kills // len(kinds) + 1))[:kills]


def start_run(run: Path, steps: int, judge_port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        RARL,
        "train",
        "configs/demo.yaml",
        f"run_dir={run}",
        f"train.steps={steps}",
        *SETTINGS,
    ]
    command.append(f"judge.url=http://127.0.0.1:{judge_port}")
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_for_fire(
    process: subprocess.Popen[bytes], rng: random.Random, folder: Path, armed: bool
) -> None:
    """Returns within a step or two after the last kill's harm is over (a new step was made),
    sometimes before that, while what was killed comes up again; or when the driver has ended."""
    step, deadline = last_step(folder / "run"), time.monotonic() + PATIENCE
    if armed and rng.random() < EARLY:
        time.sleep(rng.random() * 8)
        return
    while last_step(folder / "run") == step and process.poll() is None:
        assert time.monotonic() < deadline, (
            f"hangs after step {step}: " + (folder / "log").read_text()[-2000:]
        )
        time.sleep(0.05)
    if armed:
        time.sleep(rng.random() * 0.8)  # anywhere in the step


def last_step(run: Path) -> int:
    rows = read_metrics(run / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def family(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


class JudgeProcess:
    """A judge that is started again as soon as it is killed, on the same port."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.port, self.log = port or free_port(), folder / "judge.log"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.judge_process", str(self.port)]
        with self.log.open("ab") as output:
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self.start()


@contextmanager
def judge_process(folder: Path) -> Iterator[JudgeProcess]:
    folder.mkdir(parents=True, exist_ok=True)
    judge = JudgeProcess(folder)
    try:
        yield judge
    finally:
        judge.process.kill()
        judge.process.wait()


def undisturbed(folder: Path, steps: int) -> Path:
    """The run directory of the same run without kills."""
    with judge_process(folder) as judge:
        process = start_run(folder / "run", steps, judge.port, folder / "log")
        assert process.wait(timeout=1800) == 0, (folder / "log").read_text()[-3000:]
    return folder / "run"


def differences(expected: Path, found: Path, steps: int) -> list[str]:
    """What two run directories do not have in common, of what they must: nothing, if all is
    well."""
    faults = []
    for name in ("adapter/adapter_model.safetensors",):
        if (expected / name).read_bytes() != (found / name).read_bytes():
            faults.append(f"{name} differs")
    rows = [read_metrics(run / "metrics.jsonl") for run in (expected, found)]
    for run, own in zip((expected, found), rows, strict=True):
        if [row["step"] for row in own] != list(range(1, steps + 1)):
            faults.append(f"{run}: steps {[row['step'] for row in own]}")
    for a, b in zip(*rows, strict=False):
        names = {key for key in {*a, *b} if not key.startswith(TIMES) and a.get(key) != b.get(key)}
        if names:
            faults.append(f"step {a['step']}: {sorted(names)} differ")
    for step in range(1, steps + 1):
        name = f"samples/step_{step:06d}.parquet"
        if not (found / name).is_file():
            faults.append(f"{name} is missing")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training; enough for the kills by default")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    steps = arguments.steps or max(FEWEST_STEPS, 3 * arguments.kills)
    started = time.monotonic()
    expected = undisturbed(arguments.out / "undisturbed", steps)
    calm = time.monotonic() - started
    campaign = Campaign(arguments.out / "killed", arguments.kills, arguments.seed, steps)
    campaign.run()
    faults = differences(expected, campaign.folder / "run", steps)
    result: dict[str, Any] = {
        "steps": steps,
        "killed": dict(campaign.killed),
        "driver starts": campaign.starts,
        "seconds undisturbed": round(calm),
        "seconds under fire": round(time.monotonic() - started - calm),
        "differences": faults,
    }
    print(json.dumps(result, indent=1))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
