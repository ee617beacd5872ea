"""The registry of sources; docs/data.md tells how to add one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from rarl.errors import UserError
from rarl.prepare.files import Files
from rarl.prepare.rows import Choices, Item
from rarl.prepare.sources import published as pub
from rarl.prepare.sources.folder import read_folder

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


CARD = "see its card on the hub"
ALL = (
    Source("vqa-rad", pub.read_vqa_rad, "CC0-1.0", "flaviagiammarino/vqa-rad", takes=("phrases",)),
    Source("slake", pub.read_slake, "CC-BY-4.0", "BoKelvin/SLAKE", takes=("language",)),
    Source("path-vqa", pub.read_path_vqa, "MIT", "flaviagiammarino/path-vqa"),
    Source("pmc-vqa", pub.read_pmc_vqa, CARD, "RadGenome/PMC-VQA", takes=("version",)),
    Source("omnimedvqa", pub.read_omnimedvqa, CARD, "foreverbeliever/OmniMedVQA"),
    Source("medxpertqa", pub.read_medxpertqa, "MIT", "TsinghuaC3I/MedXpertQA", takes=("images",)),
    Source("folder", read_folder, "your own", None),
)
SOURCES = {source.name: source for source in ALL}


def find_source(name: str) -> Source:
    """Returns the source of this name. Raises UserError if it is unknown."""
    if name not in SOURCES:
        raise UserError(f"source '{name}' is unknown; known are: {', '.join(SOURCES)}")
    return SOURCES[name]


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
