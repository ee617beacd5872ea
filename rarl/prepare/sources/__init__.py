"""The registry of sources; docs/data.md tells how to add one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import get_args

from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.rows import Choices, Item
from rarl.prepare.sources import published as pub
from rarl.prepare.sources.folder import read_folder
from rarl.system.imports import import_object, own_error

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
SECONDS_TO_ANSWER = 20


@dataclass(frozen=True)
class Source:
    """`read` yields every published row in order; `hub` is where the data set is published."""

    name: str
    read: Callable[[Files, Choices], Iterator[Item]]
    licence: str
    hub: str | None
    takes: tuple[str, ...] = ()  # of `Choices`

    def require_taken(self, choices: Choices) -> None:
        """Raises UserError for a choice that this source would ignore."""
        for field in fields(Choices):
            if getattr(choices, field.name) != field.default and field.name not in self.takes:
                raise UserError(f"--{field.name} says nothing to {self.name}; leave it out")


CARD, OWN = "see its card on the hub", "your own"
ALL = (
    Source("vqa-rad", pub.read_vqa_rad, "CC0-1.0", "flaviagiammarino/vqa-rad", takes=("phrases",)),
    Source("slake", pub.read_slake, "CC-BY-4.0", "BoKelvin/SLAKE", takes=("language",)),
    Source("path-vqa", pub.read_path_vqa, "MIT", "flaviagiammarino/path-vqa"),
    Source("pmc-vqa", pub.read_pmc_vqa, CARD, "RadGenome/PMC-VQA", takes=("version",)),
    Source("omnimedvqa", pub.read_omnimedvqa, CARD, "foreverbeliever/OmniMedVQA"),
    Source("medxpertqa", pub.read_medxpertqa, "MIT", "TsinghuaC3I/MedXpertQA", takes=("images",)),
    Source("folder", read_folder, OWN, None, takes=("map",)),
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
    name: str, read: Callable[[Files, Choices], Iterable[Item]], files: Files, choices: Choices
) -> Iterator[Item]:
    """Yields what the user's own function yields. Raises UserError where it fails, with the place
    in its file, and for what is no item."""
    try:
        for item in read(files, choices):
            if not isinstance(item, get_args(Item)):
                kinds = "Record, BadRecord and LeftOut of rarl.prepare.rows"
                raise UserError(f"source '{name}' gave a {type(item).__name__}; known are {kinds}")
            yield item
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # of code that is not ours
        raise UserError(f"source '{name}': {own_error(error)}") from error


def find_source_files(src: str) -> Path:
    """Returns a path on this machine; a hub id is downloaded into its cache. Raises UserError."""
    path = Path(src).expanduser()
    if path.exists():
        return path
    if not HUB_ID.match(src):
        raise UserError(f"{src}: no such folder or file, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(src, repo_type="dataset", etag_timeout=SECONDS_TO_ANSWER))
    except Exception as error:  # network, permission, unknown id: the library has many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"{src}: no such folder here, and the hub's data set of that id could not be "
            f"downloaded ({reason}); download it where there is a network and give the folder"
        ) from None
