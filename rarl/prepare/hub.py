"""Where a source's files are: a folder or file here, or a data set on Hugging Face's hub, which is
downloaded into the hub's own cache as far as the source reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rarl.errors import UserError

# owner/name, and the branch, tag or commit that is meant, if it is not the newest.
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
SECONDS_TO_ANSWER = 20


@dataclass(frozen=True)
class Located:
    """A path on this machine; `revision` is the commit of the hub's data set that it holds, None
    where it did not come from there."""

    path: Path
    revision: str | None = None


def locate(src: str, reads: Sequence[str] | None) -> Located:
    """Returns where the files of `src` are. A folder or file of that name wins over a hub id; of a
    hub's data set the files that match `reads` are downloaded, None: all. Raises UserError."""
    path = Path(src).expanduser()
    if path.exists():
        return Located(path)
    asked = HUB_ID.fullmatch(src)
    if not asked:
        raise UserError(f"{src}: no such folder or file, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            asked["id"],
            repo_type="dataset",
            revision=asked["revision"],
            allow_patterns=None if reads is None else list(reads),
            etag_timeout=SECONDS_TO_ANSWER,
        )
    except GatedRepoError:
        raise UserError(
            f"{src}: is gated: accept its conditions on its page on the hub, and log in there with "
            "`hf auth login` or the variable HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{src}: no such folder here, and the hub knows no data set of that id, unless it is "
            "private: then log in with `hf auth login` or the variable HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        wanted = f"the hub's data set {asked['id']} has no revision '{asked['revision']}'"
        raise UserError(f"{src}: {wanted}") from None
    except Exception as error:  # network, disk, a server in trouble: the library has many kinds
        raise UserError(
            f"{src}: no such folder here, and the hub's data set of that id could not be "
            f"downloaded ({first_line(error)}); download it where there is a network and give the "
            "folder"
        ) from None
    return Located(Path(folder), Path(folder).name)


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
