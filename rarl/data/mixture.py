"""A mixture: a YAML file that names data sets and how often each is drawn from. It stands wherever
a data set may.

    vqa-rad/train.parquet: 1
    slake/train.parquet: 3      # three of four questions, however many each has

Paths are relative to the file's own folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from rarl.errors import UserError

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Part:
    """`weight` is above 0; only the proportions count."""

    path: Path
    weight: float


def read_mixture(path: Path) -> list[Part]:
    """The parts of a mixture; a path that is no YAML file is its own only part. Raises
    UserError."""
    if path.suffix not in ENDINGS:
        return [Part(path, 1.0)]
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the mixture cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(
            f"{path}: a mixture is a list of data sets with weights, such as `vqa-rad/train.parquet: 1`"
        )
    parts = []
    for name, weight in tree.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 < weight < float("inf")
        ):
            raise UserError(f"{path}: the weight of '{name}' is {weight!r}, not a number above 0")
        if Path(str(name)).suffix in ENDINGS:
            raise UserError(f"{path}: '{name}' is a mixture itself; name its data sets here")
        place = path.parent / Path(str(name)).expanduser()
        if not place.exists():
            raise UserError(
                f"{path}: {name}: no such Parquet file or folder; paths are relative to the mixture's own folder, "
                f"so this is {place}"
            )
        parts.append(Part(place, float(weight)))
    return parts
