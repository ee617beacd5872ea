"""metrics.jsonl and TensorBoard: one object a step, the same keys in every line."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from rarl.files import write_text

RECENT = 10  # steps


class MetricsLog:
    """Appends to both; a run that continues at step n first drops what an interrupted one wrote from n on."""

    def __init__(self, path: Path, tensorboard: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [row for row in read_metrics(path) if row["step"] < first_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.last = deque(kept, maxlen=RECENT)
        self.file = path.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(tensorboard), purge_step=first_step)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.last.append(row)
        for key, value in row.items():
            if key != "step" and value is not None:
                self.events.add_scalar(key, value, row["step"])
        self.events.flush()

    def recent(self, key: str) -> float | None:
        """The mean of the last ten steps' values; None where there are none."""
        values = [row[key] for row in self.last if row[key] is not None]
        return sum(values) / len(values) if values else None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
