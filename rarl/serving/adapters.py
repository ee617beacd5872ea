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
from functools import lru_cache
from pathlib import Path

import yaml

from rarl.errors import UserError
from rarl.serving.requests import Refusal

# One part of a path, which cannot lead elsewhere.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
READS = 5  # attempts to read an adapter while somebody replaces it
Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ServedAdapter:
    """`version` is the name by which engines know it, and replies tell it. `run` is the run
    directory that the adapter is from, or None."""

    name: str
    folder: Path
    version: str
    run: Path | None


class AdapterFolder:
    """`path` may not exist yet; None: no adapters. `base` is the model they were made for."""

    def __init__(self, path: str | None, base: str, max_rank: int) -> None:
        self.path = Path(path).expanduser().resolve() if path is not None else None
        self.base, self.max_rank = base, max_rank

    def names(self) -> list[str]:
        """Returns the names of all adapters of this base, sorted."""
        if self.path is None or not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if self.peft_folder(entry.name))

    def peft_folder(self, name: str) -> Path | None:
        """Returns the folder with the adapter's two files; None where there is no such adapter, or
        where it is from a run of another base model."""
        if self.path is None or not NAME.fullmatch(name):
            return None
        folder = find_peft(self.path / name)
        config = self.path / name / "config.yaml"
        if folder is None or (config.is_file() and not is_for(self.base, config)):
            return None
        return folder

    def find(self, name: str) -> ServedAdapter:
        """Raises Refusal if there is no such adapter now, or it cannot be served."""
        folder = self.peft_folder(name)
        if folder is None or self.path is None:
            shown = f"'{name}'" if NAME.fullmatch(name) else "of this name"
            raise Refusal("model_not_found", "model", shown=shown)
        try:
            digest, rank = digest_and_rank(folder, stamp(folder))
        except (OSError, ValueError, KeyError, TypeError):
            raise Refusal("adapter_unreadable", name=name) from None
        if rank > self.max_rank:
            raise Refusal("adapter_too_large", name=name, rank=rank, most=self.max_rank)
        run = self.path / name
        is_run = (run / "config.yaml").is_file()
        return ServedAdapter(name, folder, f"{name}@{digest}", run if is_run else None)


def find_peft(entry: Path) -> Path | None:
    """Returns `adapter` in a run directory, or the entry itself; None for any other folder."""
    for folder in (entry / "adapter", entry):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    return None


def is_for(base: str, config: Path) -> bool:
    """Compares a run's `model.path` with the base model, by text or by the folder meant."""
    try:
        path = str(yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["path"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return False
    return path == base or Path(path).expanduser().resolve() == Path(base).expanduser().resolve()


def stamp(folder: Path) -> Stamp:
    """Returns what changes whenever the folder or one of the two files does."""
    stats = [path.stat() for path in (folder, folder / CONFIG, folder / WEIGHTS)]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats)


def read_files(folder: Path) -> tuple[bytes, bytes]:
    """Returns configuration and weights of one version. Raises OSError if it keeps changing."""
    for _ in range(READS):
        before = stamp(folder)
        config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        if stamp(folder) == before:
            return config, weights
    raise OSError(f"{folder} keeps changing")


@lru_cache(maxsize=1024)
def digest_and_rank(folder: Path, unchanged: Stamp) -> tuple[str, int]:
    """Returns digest and rank, which are kept as long as the folder's stamp is the same. Raises
    OSError and what a broken configuration raises."""
    config, weights = read_files(folder)
    return digest_of(config, weights), int(json.loads(config)["r"])


def digest_of(config: bytes, weights: bytes) -> str:
    both = hashlib.sha256(config).digest() + hashlib.sha256(weights).digest()
    return hashlib.sha256(both).hexdigest()[:16]


class AdapterReplaced(UserError):
    """The version that was asked for is not there any more."""


class Snapshots:
    """An engine's own copies: vLLM reads an adapter again whenever it had to put it aside."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._copies = tempfile.TemporaryDirectory(prefix="rarl-adapters-")

    def take(self, version: str) -> Path:
        """Returns a PEFT folder that holds exactly `version`. Raises AdapterReplaced."""
        name, _, digest = version.partition("@")
        copy = Path(self._copies.name) / version
        if copy.is_dir():
            return copy
        folder = find_peft(self.path / name) if NAME.fullmatch(name) else None
        if folder is None:
            raise AdapterReplaced(f"adapter '{name}' is gone")
        try:
            config, weights = read_files(folder)
        except OSError:
            raise AdapterReplaced(f"adapter '{name}' is being replaced") from None
        if digest_of(config, weights) != digest:
            raise AdapterReplaced(f"adapter '{name}' was replaced")
        partial = Path(tempfile.mkdtemp(dir=self._copies.name))
        (partial / CONFIG).write_bytes(config)
        (partial / WEIGHTS).write_bytes(weights)
        partial.rename(copy)
        return copy
