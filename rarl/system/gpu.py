"""What a GPU needs of this machine: one line for each thing that is missing, with what to do.

Only the standard library is used, since `setup/environment.py` asks before anything is installed.
What is asked of the driver is asked through `nvidia-smi`: PyTorch's CPU build cannot see a GPU, and
its CUDA build neither, where the driver is too old.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# torch 2.13 and vLLM 0.29 are built for CUDA 13.0, whose oldest driver this is.
OLDEST_DRIVER = "580.65"
# bfloat16, in which models are computed on GPUs, and vLLM's kernels for it.
OLDEST_CAPABILITY = (8, 0)
# Ray's object store holds prepared examples there, and the sampler reads each adapter from there.
SHARED_MEMORY_BYTES = 1 << 30
SHARED_MEMORY = Path("/dev/shm")
OTHER_CARD = "take an A100, A10, L4, RTX 30 or a newer card, or compute on the CPU"


@dataclass(frozen=True)
class Gpu:
    """A card as its driver describes it. `memory` is what programs can have of it, `free` what they
    have not taken (GiB)."""

    name: str
    memory: float
    free: float


class DriverError(RuntimeError):
    """nvidia-smi is not there, or cannot answer."""


def ask_driver(*fields: str) -> list[list[str]]:
    """Returns these fields of nvidia-smi for each card that CUDA_VISIBLE_DEVICES leaves. Raises
    DriverError, with the reason in one line."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise DriverError("nvidia-smi is not on PATH")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # Parts of a card, which nvidia-smi does not know by these names, are asked for as the card.
    if re.fullmatch(r"(\d+|GPU-[\w-]+)(,(\d+|GPU-[\w-]+))*", visible):
        command.append(f"--id={visible}")
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (asked.stdout + asked.stderr).strip().splitlines()
    if asked.returncode != 0 or not asked.stdout.strip():
        raise DriverError(f"nvidia-smi: {said[0].strip() if said else 'it says nothing'}")
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines()]
    # Such as "No devices were found", with exit code 0.
    if any(len(row) != len(fields) for row in rows):
        raise DriverError(f"nvidia-smi: {said[0].strip()}")
    return rows


def gpus() -> list[Gpu]:
    """Returns the cards of this machine; none where no driver answers, or does not say their
    memory."""
    try:
        rows = ask_driver("name", "memory.total", "memory.reserved", "memory.free")
        return [
            Gpu(name, (float(total) - float(reserved)) / 1024, float(free) / 1024)
            for name, total, reserved, free in rows
        ]
    except (DriverError, ValueError):
        return []


def driver_fault() -> str | None:
    """Returns what is wrong with the driver; None where it is new enough and sees a card."""
    install = f"install NVIDIA's driver {OLDEST_DRIVER} or newer"
    try:
        oldest = min((row[0] for row in ask_driver("driver_version")), key=version_of)
    except DriverError as error:
        return f"no NVIDIA driver answers ({error}); {install}, or run on a machine with a GPU"
    if version_of(oldest) < version_of(OLDEST_DRIVER):
        return f"driver {oldest} is too old for CUDA 13.0, which the GPU build needs; {install}"
    return None


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def capability_fault(index: int, name: str, capability: tuple[int, int]) -> str | None:
    """Returns what is wrong with a card of this compute capability, if anything is."""
    if capability >= OLDEST_CAPABILITY:
        return None
    has, needs = (".".join(map(str, one)) for one in (capability, OLDEST_CAPABILITY))
    return (
        f"GPU {index} ({name}) has compute capability {has}, and models are computed in bfloat16, "
        f"which needs {needs}; {OTHER_CARD}"
    )


def compiler_faults() -> list[str]:
    """Returns what Triton lacks, which compiles a part of its own for this Python, and vLLM's
    kernels, when an engine starts."""
    faults = []
    compiler = os.environ.get("CC")
    if compiler is not None and shutil.which(compiler) is None:
        faults.append(f"CC={compiler}: no such C compiler; unset CC, or let it name one")
    elif compiler is None and not (shutil.which("gcc") or shutil.which("clang")):
        faults.append(
            "no C compiler, with which Triton compiles vLLM's kernels; install gcc (on Debian and "
            "Ubuntu: apt-get install build-essential)"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        package = f"python{sysconfig.get_python_version()}-dev"
        faults.append(
            f"{header} is missing, which Triton needs to compile vLLM's kernels; install Python's "
            f"headers (on Debian and Ubuntu: apt-get install {package})"
        )
    return faults


def shared_memory_fault() -> str | None:
    """Returns what is wrong with /dev/shm, if anything is."""
    has, needs = 0, SHARED_MEMORY_BYTES
    if SHARED_MEMORY.is_dir():
        found = os.statvfs(SHARED_MEMORY)
        has = found.f_frsize * found.f_blocks
    if has >= needs:
        return None
    return (
        f"{SHARED_MEMORY} has {has >> 20} MiB, and Ray's object store and the adapters need "
        f"{needs >> 20}; give the container more, as with `docker run --shm-size=8g`"
    )


def machine_faults() -> list[str]:
    """Returns what is missing beside driver and card."""
    shared_memory = shared_memory_fault()
    return compiler_faults() + ([shared_memory] if shared_memory else [])


def all_faults() -> list[str]:
    """Returns everything that is missing, as far as it can be told without PyTorch."""
    driver = driver_fault()
    if driver is not None:
        return [driver, *machine_faults()]
    cards = ask_driver("name", "compute_cap")
    capabilities = [version_of(capability)[:2] for _, capability in cards]
    faults = [
        capability_fault(index, cards[index][0], (found[0], found[1]))
        for index, found in enumerate(capabilities)
    ]
    return [fault for fault in faults if fault] + machine_faults()
