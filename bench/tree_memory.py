"""What a program and all processes it starts take in memory, watched while it runs."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import psutil

INTERVAL = 0.2  # seconds between samples
MIB = 2**20
# By how Ray names its workers. What is not here is a helper of Ray Train or Ray Data; what has no
# such name at all belongs to Ray itself.
KINDS = {
    "ray::Sampler": "sampler",
    "ray::RayTrainWorker": "train worker",
    "ray::MapBatches": "data worker",
    "ray::DashboardAgent": "Ray's own",
    "ray::RuntimeEnvAgent": "Ray's own",
}
HELPERS = "Ray Train's and Ray Data's helpers"


@dataclass
class Peak:
    """MiB at the moment at which the tree's PSS was highest. PSS counts a page that n processes
    share as 1/n of a page in each, so the sum over the tree is what the tree takes; `private` is
    USS by kind of process, `shared` the rest."""

    pss: float = 0.0
    private: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    shared: float = 0.0
    samples: int = 0
    # by process id, since Ray names them only while at work
    data_workers: set[int] = field(default_factory=set)


def run_watched(
    command: list[str], folder: str, environment: dict[str, str]
) -> tuple[Peak, float, subprocess.CompletedProcess[str]]:
    """Peak of the command's process tree, its seconds, and how it ended."""
    started = time.time()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = Peak()
    watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, errors = process.communicate()
    watcher.join()
    return (
        peak,
        time.time() - started,
        subprocess.CompletedProcess(command, process.returncode, output, errors),
    )


def watch(root: int, peak: Peak) -> None:
    """Until the root ends."""
    try:
        top = psutil.Process(root)
        while top.is_running() and top.status() != psutil.STATUS_ZOMBIE:
            begin = time.time()
            sample(top, peak)
            time.sleep(max(0.0, INTERVAL - (time.time() - begin)))
    except psutil.NoSuchProcess:
        return


def sample(top: psutil.Process, peak: Peak) -> None:
    private: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    pss = 0.0
    for process in [top, *top.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            kind = "driver" if process.pid == top.pid else kind_of(" ".join(process.cmdline()))
            if kind == "data worker":
                peak.data_workers.add(process.pid)
            kind = "data worker" if process.pid in peak.data_workers else kind
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile
        pss += memory.pss / MIB
        private[kind] += memory.uss / MIB
        counts[kind] += 1
    peak.samples += 1
    if pss > peak.pss:
        peak.pss, peak.private, peak.counts = pss, dict(private), dict(counts)
        peak.shared = pss - sum(private.values())


def kind_of(command: str) -> str:
    for beginning, kind in KINDS.items():
        if command.startswith(beginning):
            return kind
    return HELPERS if command.startswith("ray::") else "Ray's own"
