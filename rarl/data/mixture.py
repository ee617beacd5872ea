"""Mixtures: a YAML file that stands for several data sets with weights, such as
`slake/train.parquet: 3`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from rarl.errors import UserError

MIXTURE_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class MixturePart:
    """A data set of a mixture. `weight` is above 0; only the proportions count."""

    path: Path
    weight: float


def read_mixture(path: Path) -> list[MixturePart]:
    """Returns the data sets that a mixture draws from by weight, with paths relative to its folder;
    another path is its own only part. Raises UserError."""
    if path.suffix not in MIXTURE_ENDINGS:
        return [MixturePart(path, 1.0)]
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the mixture cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not tree:
        what = "a mixture is a list of data sets with weights, such as `vqa-rad/train.parquet: 1`"
        raise UserError(f"{path}: {what}")
    parts = []
    for name, weight in ((str(name), weight) for name, weight in tree.items()):
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < float(weight) < math.inf:
            raise UserError(f"{path}: the weight of '{name}' is {weight!r}, not a number above 0")
        if Path(name).suffix in MIXTURE_ENDINGS:
            raise UserError(f"{path}: '{name}' is a mixture itself; name its data sets here")
        place = path.parent / Path(name).expanduser()
        if not place.exists():
            own = f"paths are relative to the mixture's own folder, so this is {place}"
            raise UserError(f"{path}: {name}: no such Parquet file or folder; {own}")
        parts.append(MixturePart(place, float(weight)))
    return parts
