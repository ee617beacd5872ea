"""The registry of sources; docs/data.md tells how to add one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import get_args

from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.rows import Choices, Item
from rarl.prepare.sources import published as pub
from rarl.prepare.sources.folder import read_folder, read_text
from rarl.prepare.sources.silvar_med import read_silvar_med
from rarl.prepare.sources.vqa_med import read_vqa_med
from rarl.system.imports import import_object, own_error

CARD, OWN = "see its card on the hub", "your own"
Reads = Callable[[Choices], Sequence[str] | None]


def files(*patterns: str) -> Reads:
    """Returns that these are read, whatever is chosen."""
    return lambda _: patterns


@dataclass(frozen=True)
class Source:
    """`read` yields every published row in order. `hub` is the data set's id on the hub, None where
    its authors have not put it there; `reads` are the names of the files to download from there,
    with `*`, None: all."""

    name: str
    read: Callable[[Files, Choices], Iterator[Item]]
    licence: str
    hub: str | None
    takes: tuple[str, ...] = ()  # of `Choices`
    reads: Reads = lambda _: None

    @property
    def is_published(self) -> bool:
        """Whether it is a known data set, with splits of its own, rather than the user's."""
        return self.licence != OWN

    def require_taken(self, choices: Choices) -> None:
        """Raises UserError for a choice that this source would ignore."""
        for field in fields(Choices):
            if getattr(choices, field.name) != field.default and field.name not in self.takes:
                raise UserError(f"--{field.name} says nothing to {self.name}; leave it out")


IMAGES = ("*.jpg", "*.jpeg", "*.png", "*.zip")
SLAKE = (*(f"*{name}" for name in pub.SLAKE_FILES), "*imgs.zip", "*.jpg", f"*{pub.DETECTIONS}")
EXPERT = ("MM/*.jsonl", "images.zip", "images/*")
ALL = (
    Source(
        "vqa-rad",
        pub.read_vqa_rad,
        "CC0-1.0",
        "flaviagiammarino/vqa-rad",
        takes=("phrases",),
        reads=files("*.parquet", "*.json", *IMAGES),
    ),
    Source(
        "slake",
        pub.read_slake,
        "CC-BY-4.0",
        "BoKelvin/SLAKE",
        takes=("language",),
        reads=files(*SLAKE),
    ),
    Source(
        "path-vqa",
        pub.read_path_vqa,
        "MIT",
        "flaviagiammarino/path-vqa",
        reads=files("*.parquet"),
    ),
    Source(
        "pmc-vqa",
        pub.read_pmc_vqa,
        CARD,
        "RadGenome/PMC-VQA",
        takes=("version",),
        reads=pub.pmc_files,
    ),
    Source(
        "omnimedvqa",
        pub.read_omnimedvqa,
        CARD,
        "foreverbeliever/OmniMedVQA",
        reads=files("*.json", *IMAGES),
    ),
    Source(
        "medxpertqa",
        pub.read_medxpertqa,
        "MIT",
        "TsinghuaC3I/MedXpertQA",
        takes=("images",),
        reads=files(*EXPERT),
    ),
    Source(
        "silvar-med",
        read_silvar_med,
        CARD,
        "Hanhpt23/Silvar-Med",
        takes=("answers",),
        reads=files("*.json", "*.jsonl", "*.parquet", *IMAGES),
    ),
    Source(
        "vqa-med-2019",
        read_vqa_med,
        "CC-BY-4.0",
        None,
        reads=files("*.txt", *IMAGES),
    ),
    Source("folder", read_folder, OWN, None, takes=("map", "slices")),
    Source("text", read_text, OWN, None, takes=("map",)),
)
SOURCES = {source.name: source for source in ALL}


def find_source(name: str) -> Source:
    """Returns RARL's own source of this name, or one that reads with what an import path leads to.
    Raises UserError."""
    if name in SOURCES:
        return SOURCES[name]
    if ":" not in name:
        known = f"known are {', '.join(SOURCES)}, or give an import path 'module:function'"
        raise UserError(f"source '{name}' is unknown; {known}")
    read = import_object(name)
    try:
        inspect.signature(read).bind(None, None)
    except (TypeError, ValueError) as error:
        wanted = "function(files, choices) that yields records"
        raise UserError(f"source '{name}' is no {wanted}: {error}") from None
    return Source(name, partial(read_own, name, read), OWN, None)


def read_own(
    name: str, read: Callable[[Files, Choices], Iterable[Item]], held: Files, choices: Choices
) -> Iterator[Item]:
    """Yields what the user's own function yields. Raises UserError where it fails, with the place
    in its file, and for what is no item."""
    try:
        for item in read(held, choices):
            if not isinstance(item, get_args(Item)):
                kinds = "Record, BadRecord and LeftOut of rarl.prepare.rows"
                raise UserError(f"source '{name}' gave a {type(item).__name__}; known are {kinds}")
            yield item
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # of code that is not ours
        raise UserError(f"source '{name}': {own_error(error)}") from error
