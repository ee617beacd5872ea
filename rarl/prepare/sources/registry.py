"""What the registry knows of a source, and where its files are: a path, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from rarl.errors import UserError
from rarl.prepare.sources.files import Files
from rarl.prepare.sources.record import Choices, Item


@dataclass(frozen=True)
class Source:
    """`read` yields every row of the published files, in their order; `hub` is where they are
    published."""

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


HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
SECONDS_TO_ANSWER = 20


def find_source_files(src: str) -> Path:
    """A folder or file on this machine; a hub id is downloaded into the hub's own cache. Raises
    UserError."""
    path = Path(src).expanduser()
    if path.exists():
        return path
    if not HUB_ID.match(src):
        raise UserError(f"{src}: no such folder or file, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(src, repo_type="dataset", etag_timeout=SECONDS_TO_ANSWER))
    except Exception as error:  # network, permission, unknown id: the library has many kinds
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else type(error).__name__
        raise UserError(
            f"{src}: no such folder here, and the hub's data set of that id could not be downloaded ({reason}); "
            "download it where there is a network and give the folder"
        ) from None
