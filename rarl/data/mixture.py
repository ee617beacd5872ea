"""A mixture: a YAML file that names data sets and how often each is drawn from. It stands wherever
a data set may.

    vqa-rad/train.parquet: 1
    slake/train.parquet: 3      # three of four questions, however many each has

Paths are relative to the file's own folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from rarl.errors import UserError

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Part:
    """A data set of a mixture. `weight` is above 0; only the proportions count."""

    path: Path
    weight: float


def read_mixture(path: Path) -> list[Part]:
    """Returns the parts of a mixture, or another path as its only part. Raises UserError."""
    if path.suffix not in ENDINGS:
        return [Part(path, 1.0)]
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the mixture cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        what = "a mixture is a list of data sets with weights, such as `vqa-rad/train.parquet: 1`"
        raise UserError(f"{path}: {what}")
    return [read_part(path, str(name), weight) for name, weight in tree.items()]


def read_part(mixture: Path, name: str, weight: object) -> Part:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 < float(str(weight)) < math.inf:
        raise UserError(f"{mixture}: the weight of '{name}' is {weight!r}, not a number above 0")
    if Path(name).suffix in ENDINGS:
        raise UserError(f"{mixture}: '{name}' is a mixture itself; name its data sets here")
    place = mixture.parent / Path(name).expanduser()
    if not place.exists():
        raise UserError(
            f"{mixture}: {name}: no such Parquet file or folder; paths are relative to the "
            f"mixture's own folder, so this is {place}"
        )
    return Part(place, float(str(weight)))
