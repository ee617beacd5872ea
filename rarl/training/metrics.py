"""metrics.jsonl: one object a step, the same keys in every line; the trackers get copies."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from rarl.config import Config
from rarl.files import write_text
from rarl.training.run_dir import RunDir, flatten
from rarl.training.trackers import Trackers

RECENT = 10  # steps


class MetricsLog:
    """Appends a line a step; a run that continues at step n first drops what an interrupted one
    wrote from n on."""

    def __init__(self, run_dir: RunDir, config: Config, first_step: int) -> None:
        kept = [row for row in read_metrics(run_dir.metrics) if row["step"] < first_step]
        write_text(run_dir.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self.last = deque(kept, maxlen=RECENT)
        self.file = run_dir.metrics.open("a", encoding="utf-8")
        self.trackers = Trackers(
            config.train.trackers, run_dir.path, flatten(config.model_dump()), first_step
        )

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.last.append(row)
        self.trackers.log(row)

    def recent(self, key: str) -> float | None:
        """The mean of the last ten steps' values; None where there are none."""
        values = [row[key] for row in self.last if row[key] is not None]
        return sum(values) / len(values) if values else None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        self.trackers.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
