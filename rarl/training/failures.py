"""A batch that gave no number, kept so that it can be looked at: `rarl replay FILE`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rarl.errors import UserError
from rarl.files import replacing
from rarl.grpo.update import NotFinite


@contextmanager
def saving_failures(folder: Path, step: int, groups: list[Any]) -> Iterator[None]:
    """Turns NotFinite into a UserError that names the file with the step's groups."""
    try:
        yield
    except NotFinite as error:
        path = folder / f"step_{step:06d}.pkl"
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps(groups))
        raise UserError(
            f"step {step}: {error}. `rarl replay {path}` shows which group of its batch it is"
        ) from None


def read_failure(path: Path) -> tuple[int, list[Any]]:
    """The step, and its groups: ScoredGroup of GRPO, Group of supervised fine-tuning. Pickled, so
    for files of one's own only. Raises UserError."""
    try:
        return int(path.stem.removeprefix("step_")), pickle.loads(path.read_bytes())
    except (OSError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path}: not a batch that a run has saved: {error}") from None
