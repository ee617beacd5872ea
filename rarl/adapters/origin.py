"""Where an adapter came from, in a small file beside its weights that travels with them. It holds
names, hashes and counts: no path, no text and no image of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rarl.config import IMPORT_PATH
from rarl.errors import UserError
from rarl.files import file_hash

FILE = "origin.json"
WEIGHTS = "adapter_model.safetensors"
How = Literal["average", "exact", "svd"]
WeightedBy = Literal["answer tokens", "loss", "hand"]


class MergedPart(BaseModel):
    """One of the adapters that were merged: the name of its run, its share (all shares add up to
    1), the SHA-256 of its weights, the answer tokens that it was trained on (None: not known), and
    its loss on the validation data, in nats per token (None: not measured)."""

    model_config = ConfigDict(frozen=True)
    name: str
    weight: float
    sha256: str
    answer_tokens: int | None = None
    loss: float | None = None


class Origin(BaseModel):
    """Of an adapter that was trained: its base, its method and steps, and on how many answer tokens
    it was trained. Of one that was merged: its parts, how they were merged and weighted, and
    `distance`, how far it is from the weighted sum of their changes, over the norm of that sum
    (Frobenius, all layers together)."""

    model_config = ConfigDict(frozen=True)
    base: str
    base_sha256: str | None = None
    method: str = ""
    steps: int = 0
    answer_tokens: int | None = None
    merged: How | None = None
    weighted_by: WeightedBy | None = None
    distance: float | None = None
    parts: list[MergedPart] = []

    def write(self, folder: Path) -> None:
        """Writes it into the adapter's folder, which is not at its final place yet."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Returns the origin of the adapter in a folder; None where nothing is known of it. Raises
    UserError for a file that cannot be read."""
    path = folder / FILE
    try:
        return Origin.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read ({reason}); delete it if it is not RARL's"
        ) from None


def base_name(path: str) -> str:
    """Returns what a base is called: its Hub id, its function, or the last part of its folder."""
    is_id = path.count("/") == 1 and not path.startswith(("/", ".", "~"))
    return path if IMPORT_PATH.match(path) or is_id else Path(path).name


def weights_hash(folder: Path) -> str | None:
    """Returns one SHA-256 of all weight files of a model's folder; None if it has none. It reads
    the whole model."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        return None
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()


def trained_origin(
    model: str, folder: str, method: str, rows: Sequence[dict[str, Any]], steps: int
) -> Origin:
    """Returns the origin of an adapter that was trained for `steps` steps on the base `model`,
    which lies in `folder`. `rows` are the run's metrics."""
    return Origin(
        base=base_name(model),
        base_sha256=weights_hash(Path(folder)),
        method=method,
        steps=steps,
        answer_tokens=tokens_in(rows, steps),
    )


def tokens_in(rows: Sequence[dict[str, Any]], steps: int) -> int | None:
    """Returns how many answer tokens the steps up to `steps` learnt from: of the references that
    were imitated, or of the replies that were sampled. None where the metrics do not say."""
    counts = [row.get("completion_tokens/total") for row in rows if row["step"] <= steps]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
