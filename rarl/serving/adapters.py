"""The adapters that can be asked: the run directories and PEFT folders of one folder, read anew
whenever one is named.

An adapter's identity is its content. vLLM keys weights and prefix cache by name, so an engine knows
an adapter as `name@digest`: what is published under an old name is a new adapter to it, and
requests in flight keep the one that they began with.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from rarl.errors import UserError
from rarl.serving.refusals import Refusal

# one part of a path that cannot lead elsewhere
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
READS = 5  # attempts to read an adapter while somebody replaces it


@dataclass(frozen=True)
class Adapter:
    """`digest` is of both files. `run` is the run directory that the adapter is from, or None."""

    name: str
    folder: Path
    digest: str
    run: Path | None
    rank: int

    @property
    def version(self) -> str:
        """As engines know it, and as replies tell it."""
        return f"{self.name}@{self.digest}"


class AdapterFolder:
    """`path` may not exist yet; None: there are no adapters. `base` is the model that they must
    have been made for."""

    def __init__(self, path: str | None, base: str, max_rank: int) -> None:
        self.path = Path(path).expanduser().resolve() if path is not None else None
        self.base, self.max_rank = base, max_rank
        self._digests: dict[tuple[object, ...], tuple[str, int]] = {}

    def names(self) -> list[str]:
        """Of all adapters of this base, sorted."""
        if self.path is None or not self.path.is_dir():
            return []
        found = [
            entry.name
            for entry in self.path.iterdir()
            if NAME.fullmatch(entry.name) and peft_folder(entry)
        ]
        return sorted(name for name in found if self.fits_base(self.path / name))

    def fits_base(self, entry: Path) -> bool:
        """False for a run of another base model."""
        return not (entry / "config.yaml").is_file() or same_model(run_model(entry), self.base)

    def find(self, name: str) -> Adapter:
        """The adapter as it is now. Raises Refusal: there is none, or it cannot be served."""
        if not NAME.fullmatch(name) or self.path is None:
            raise no_such(name)
        entry = self.path / name
        folder = peft_folder(entry)
        if folder is None or not self.fits_base(entry):
            raise no_such(name)
        digest, rank = self._identity(folder, name)
        if rank > self.max_rank:
            raise Refusal(
                409,
                "adapter_too_large",
                f"adapter '{name}' has rank {rank}; this server takes {self.max_rank}",
            )
        run = entry if (entry / "config.yaml").is_file() else None
        return Adapter(name, folder, digest, run, rank)

    def _identity(self, folder: Path, name: str) -> tuple[str, int]:
        """Digest and rank, kept for as long as neither file changes."""
        try:
            stats = [(folder / part).stat() for part in (CONFIG, WEIGHTS)]
            key = tuple(
                (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats
            )
            if (folder, key) not in self._digests:
                config, weights = read_files(folder)
                self._digests[folder, key] = (
                    digest_of(config, weights),
                    int(json.loads(config)["r"]),
                )
            return self._digests[folder, key]
        except (OSError, ValueError, KeyError, TypeError):
            raise Refusal(
                409, "adapter_unreadable", f"adapter '{name}' is not a complete PEFT folder now"
            ) from None


def no_such(name: str) -> Refusal:
    shown = f"'{name}'" if NAME.fullmatch(name) else "of this name"
    return Refusal(
        404,
        "model_not_found",
        f"there is no model {shown}; GET /v1/models lists those that there are",
        "model",
    )


def peft_folder(entry: Path) -> Path | None:
    """The folder that holds the adapter's two files: `adapter` in a run directory, or the entry
    itself."""
    for folder in (entry / "adapter", entry):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    return None


def run_model(run: Path) -> str | None:
    """`model.path` of a run's configuration; None where it cannot be read."""
    try:
        tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return str(tree["model"]["path"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def same_model(one: str | None, other: str) -> bool:
    """By text, or by the folder that they mean."""
    if one is None:
        return False
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def read_files(folder: Path) -> tuple[bytes, bytes]:
    """Configuration and weights of one and the same version. Raises OSError where it keeps
    changing."""
    for _ in range(READS):
        before = stamp(folder)
        config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        if stamp(folder) == before:
            return config, weights
    raise OSError(f"{folder} keeps changing")


def stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    stats = [path.stat() for path in (folder, folder / CONFIG, folder / WEIGHTS)]
    return tuple((one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for one in stats)


def digest_of(config: bytes, weights: bytes) -> str:
    return hashlib.sha256(
        hashlib.sha256(config).digest() + hashlib.sha256(weights).digest()
    ).hexdigest()[:16]


class Snapshots:
    """An engine's own copies, since vLLM reads an adapter's files again whenever it had to put it
    aside."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._copies = tempfile.TemporaryDirectory(prefix="rarl-adapters-")

    def take(self, version: str) -> Path:
        """A PEFT folder that holds exactly `version`. Raises UserError when it was replaced in the
        meantime."""
        name, _, digest = version.partition("@")
        copy = Path(self._copies.name) / version
        if copy.is_dir():
            return copy
        folder = peft_folder(self.path / name) if NAME.fullmatch(name) else None
        if folder is None:
            raise UserError(f"adapter '{name}' is gone")
        try:
            config, weights = read_files(folder)
        except OSError:
            raise UserError(f"adapter '{name}' is being replaced") from None
        if digest_of(config, weights) != digest:
            raise UserError(f"adapter '{name}' was replaced")
        partial = Path(tempfile.mkdtemp(dir=self._copies.name))
        (partial / CONFIG).write_bytes(config)
        (partial / WEIGHTS).write_bytes(weights)
        partial.rename(copy)
        return copy
