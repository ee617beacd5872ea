"""How the rows of a data set are parted into train and test, and validation if it is asked for: by
image, by patient, or by site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarl.errors import UserError
from rarl.prepare.fingerprint import Side, groups_of_rows, joined

DISJOINT = ("image-disjoint", "patient-disjoint")
WAYS_TO_SPLIT = ("official", *DISJOINT)
SITE = "site:"  # a way, too, with the name of the site behind it whose questions are the test split


@dataclass(frozen=True)
class Splitting:
    """What is asked for: one of WAYS_TO_SPLIT or a site, the shares of the images or patients that
    are the test and the validation split, and the seed that draws them. Raises UserError for shares
    that cannot be."""

    way: str
    test_share: float
    seed: int
    validation_share: float = 0.0  # none

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise UserError(f"--test-share {self.test_share}: expected a share between 0 and 1")
        if not 0 <= self.validation_share < 1 - self.test_share:
            raise UserError(
                f"--validation-share {self.validation_share}: expected a share that leaves some to "
                f"train on beside --test-share {self.test_share}"
            )
        if self.validation_share and self.way not in DISJOINT:
            raise UserError(
                f"--validation-share {self.validation_share}: goes with --split "
                f"{' or '.join(DISJOINT)}"
            )


def require_way_to_split(way: str) -> None:
    """Raises UserError for one that there is not."""
    if way.startswith(SITE) and not way.removeprefix(SITE).strip():
        raise UserError(f"--split '{way}': name the site, as in --split 'site:St. Mary'")
    if way not in WAYS_TO_SPLIT and not way.startswith(SITE):
        known = ", ".join((*WAYS_TO_SPLIT, f"{SITE}NAME"))
        raise UserError(f"--split '{way}' is unknown; known are: {known}")


def own_split(
    side: Side, sites: Sequence[str | None], splits: NDArray[np.str_], asked: Splitting
) -> tuple[NDArray[np.str_], str]:
    """Returns train, validation or test for every row, shape (n,), and what the card says of it.
    Rows with an empty split stay out. Raises UserError."""
    kept = splits != ""
    if asked.way.startswith(SITE):
        chosen = of_site(sites, kept, asked.way.removeprefix(SITE).strip())
        return np.where(kept, np.where(chosen, "test", "train"), ""), asked.way
    of_row = groups_of_rows(side)
    unit = "image"
    if asked.way == "patient-disjoint":
        of_row, unit = with_patients(of_row, side.patients), "patient"
        if not any(side.patients):
            raise UserError(
                "--split patient-disjoint: nothing tells the patients, neither a "
                "column `patient` (--map patient='Patient ID') nor DICOM files"
            )
    present = np.unique(of_row[kept])
    validation = max(1, round(asked.validation_share * len(present)))
    validation *= asked.validation_share > 0
    count = min(max(1, round(asked.test_share * len(present))), len(present) - 1 - validation)
    if count < 1:
        what = {"image": "all images are the same or nearly so", "patient": "all is of one patient"}
        told = what[unit] if len(present) == 1 else f"only {len(present)} {unit}s differ"
        raise UserError(f"{told}: there is nothing to split by {unit}")
    drawn = np.random.default_rng(asked.seed).permutation(present)
    found = np.where(np.isin(of_row, drawn[:count]), "test", "train").astype("U10")
    found[np.isin(of_row, drawn[count : count + validation])] = "validation"
    described = f"{asked.way}, seed {asked.seed}, test share {asked.test_share}"
    if validation:
        described += f", validation share {asked.validation_share}"
    unknown = sum(one is None for one in side.patients) if unit == "patient" else 0
    if unknown:
        described += f", {unknown} rows of unknown patients by their images"
    return np.where(kept, found, ""), described


def with_patients(of_row: NDArray[np.int64], patients: Sequence[str | None]) -> NDArray[np.int64]:
    """Returns a group number for every row, shape (n,): rows share it that are about one image, or
    nearly the same, or about one patient, directly or through others."""
    known = {one: number for number, one in enumerate(dict.fromkeys(filter(None, patients)))}
    rows = np.array([row for row, one in enumerate(patients) if one], np.int64)
    images = int(of_row.max()) + 1
    others = np.array([images + known[str(patients[row])] for row in rows], np.int64)
    return joined(of_row[rows], others, images + len(known))[of_row]


def of_site(sites: Sequence[str | None], kept: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    """Returns which rows are of a site, whatever its case. Raises UserError if none is, or all."""
    chosen = np.array([(one or "").casefold() == name.casefold() for one in sites])
    if not (chosen & kept).any() or (chosen | ~kept).all():
        known = ", ".join(sorted({one for one in sites if one})) or "none"
        which = "all rows are" if (chosen & kept).any() else "no row is"
        raise UserError(f"--split {SITE}{name}: {which} of that site; there are {known}")
    return chosen
