"""How the benchmarks start `rarl`: as a user does, in a process and a Ray of its own, without a
network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RARL = str(Path(sys.executable).parent / "rarl")


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"HF_HUB_OFFLINE": "1"}
