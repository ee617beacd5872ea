"""The files of a published data set: a folder and the zip archives in it, as one tree of paths.
Nothing is unpacked. What `rarl prepare` made there is no part of it, nor what macOS adds."""

from __future__ import annotations

import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from rarl.data.parquet import read_card
from rarl.errors import UserError
from rarl.files import PARTIAL

# What zipfile raises for a broken archive: ValueError for a name that is not of its encoding,
# NotImplementedError, a RuntimeError, for a newer version.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError)
BROKEN = (*BROKEN_ZIP, EOFError, RuntimeError, ValueError, OSError)
MAX_FILE_BYTES = 1 << 30  # of one image or table: an archive's member may pretend to any size
SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "valset", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}


class Fault(ValueError):
    """A row cannot be used; the message says why. The row is counted, listed and left out."""


@dataclass(frozen=True)
class ImageFile:
    """An encoded image; `name` is that under which it was published, and `path` where its file lies
    below the source, if it is one. `frame` is which one of a DICOM file is meant, from 0. `read`
    raises Fault."""

    read: Callable[[], bytes]
    name: str = ""
    path: str = ""
    frame: int = 0


@dataclass(frozen=True)
class Entry:
    """A file on disk, or a member of an archive on disk."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"


class Files:
    """`named` is a folder, or one file in it. Raises UserError for a bad archive."""

    def __init__(self, named: Path) -> None:
        self.named = named
        self.root = named if named.is_dir() else named.parent
        self.chosen = None if named.is_dir() else named.name
        self.entries: dict[str, Entry] = {}
        self.archives: dict[Path, zipfile.ZipFile] = {}
        on_disk = sorted(walk(self.root))
        for path in on_disk:
            if path.suffix.lower() == ".zip":
                self.add_archive(path)
        for path in on_disk:  # after the archives: what was unpacked counts
            self.entries[path.relative_to(self.root).as_posix()] = Entry(path)
        self.by_name: dict[str, list[str]] = {}
        for name in self.entries:
            self.by_name.setdefault(PurePosixPath(name).name, []).append(name)

    def add_archive(self, path: Path) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except BROKEN as error:
            bad = f"{path}: not a readable zip archive ({error}); fetch it again"
            raise UserError(bad) from None
        self.archives[path] = archive
        folder = path.parent.relative_to(self.root)
        for info in archive.infolist():
            if info.is_dir() or is_of_macos(info.filename):
                continue
            member = f"{path}: member '{info.filename}'"
            if leads_outside(info.filename):
                raise UserError(f"{member} leads outside the archive; do not trust this file")
            if info.flag_bits & 1:
                raise UserError(f"{member} is encrypted; unpack it beside the archive first")
            self.entries[(folder / info.filename).as_posix()] = Entry(path, info.filename)

    def find(self, *patterns: str) -> list[str]:
        """Returns the names whose last part matches a pattern, or only the chosen file, sorted."""
        names = self.entries if self.chosen is None else [self.chosen]
        return sorted(n for n in names if any(fnmatch(PurePosixPath(n).name, p) for p in patterns))

    def require(self, what: str, *patterns: str) -> list[str]:
        """Like `find`, but raises UserError "holds `what`" if there is nothing."""
        names = self.find(*patterns)
        if not names:
            raise UserError(f"{self.named}: holds {what}")
        return names

    def split_of(self, name: str) -> str:
        """Returns the split that the name of a file or of the nearest folder up to the root tells;
        the empty text if none does, or if one names two."""
        for part in reversed((self.root.resolve().name, *PurePosixPath(name).parts)):
            words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part.rsplit(".", 1)[0])
            told = {SPLIT_OF_WORD[w] for word in words if (w := word.lower()) in SPLIT_OF_WORD}
            if told:
                return told.pop() if len(told) == 1 else ""
        return ""

    def read(self, name: str) -> bytes:
        """Returns a file's content. Raises Fault if it is broken or too large."""
        entry = self.entries[name]
        try:
            size, read = entry.path.stat().st_size, entry.path.read_bytes
            if entry.member is not None:
                archive = self.archives[entry.path]
                size = archive.getinfo(entry.member).file_size
                read = partial(archive.read, entry.member)
            if size <= MAX_FILE_BYTES:
                return read()
            raise Fault(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB")
        except Fault:
            raise
        except BROKEN as error:
            raise Fault(f"{name} cannot be read ({error})") from None

    def read_whole(self, name: str) -> bytes:
        """Like `read`, of a file without which nothing can be done. Raises UserError."""
        try:
            return self.read(name)
        except Fault as fault:
            raise UserError(f"{self.entries[name]}: {fault}") from None

    def read_text(self, name: str) -> str:
        """Returns a text file in UTF-8, with or without its mark. Raises UserError."""
        return self.decoded(name, self.read_whole(name))

    def decoded(self, name: str, content: bytes) -> str:
        """Returns what `read_text` does, of a file that was read."""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            byte, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
            reason = f"not UTF-8 (byte 0x{byte:02x} in line {line}); save it as UTF-8"
            raise UserError(f"{self.entries[name]}: {reason}") from None

    def read_table_text(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Like `read_text`, but a text that may be in Windows-1252, as Excel writes CSV in Western
        Europe, is read so. Returns the text, and then a note that shows one of its words."""
        content = self.read_whole(name)
        if is_utf8(content) or not may_be_cp1252(content):
            return self.decoded(name, content), ()
        text = content.decode("cp1252")
        letters = (word for word in re.findall(r"\w+|\S", text) if not word.isascii())
        advice = f"if '{next(letters)}' is not what it says, save the table as UTF-8"
        return text, (f"rows are of a table in Windows-1252 (cp1252), not UTF-8: {advice}",)

    def on_disk(self, name: str) -> Path:
        """Returns a file's path. Raises UserError for a member of an archive."""
        entry = self.entries[name]
        if entry.member is not None:
            raise UserError(f"{entry}: unpack it beside the archive first")
        return entry.path

    def image(self, given: str) -> ImageFile:
        """Returns the image of this name: a path from the root, an absolute one below it, or its
        last parts. Raises Fault if there is none, or more than one."""
        path = PurePosixPath(given.strip().replace("\\", "/"))
        for root in (self.root.absolute(), self.root.resolve()):
            path = path.relative_to(root) if path.is_relative_to(root) else path
        name = path.as_posix()
        if leads_outside(name):
            raise Fault(f"image '{name}' leads outside the source folder")
        found = [one for one in self.by_name.get(path.name, []) if f"/{one}".endswith(f"/{name}")]
        found = [one for one in found if self.entries[one].member is None] or found
        if name in self.entries:
            found = [name]
        if not found:
            alike = self.by_folded_name.get(path.name.casefold(), [])
            near = [one for one in alike if f"/{one}".casefold().endswith(f"/{name}".casefold())]
            advice = f"; did you mean '{(near or alike)[0]}'?" if alike else ""
            raise Fault(f"image '{name}' is nowhere below the source folder{advice}")
        if len(found) > 1:
            raise Fault(f"image '{name}' could be {found[0]} or {found[1]}; give more of its path")
        return ImageFile(partial(self.read, found[0]), given, found[0])

    @cached_property
    def by_folder(self) -> dict[str, list[str]]:
        """The names of the files in each folder, sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(self.entries):
            found.setdefault(PurePosixPath(name).parent.as_posix(), []).append(name)
        return found

    @cached_property
    def by_folded_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for known, names in self.by_name.items():
            found.setdefault(known.casefold(), []).extend(names)
        return found

    def close(self) -> None:
        for archive in self.archives.values():
            archive.close()


def walk(root: Path) -> Iterator[Path]:
    """Yields every file of the data set below `root`, each folder once, linked ones too."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        # Not what `rarl prepare` made there, or left when it was killed.
        others = [name for name in names if PARTIAL not in name]
        names[:] = [name for name in others if read_card(Path(folder, name)) is None]
        here = (Path(folder, name) for name in files if not is_of_macos(name))
        yield from (path for path in here if path.is_file())


def is_of_macos(name: str) -> bool:
    """Returns whether it is Finder's own data beside the files of an archive or a foreign disk."""
    return "__MACOSX" in PurePosixPath(name).parts or PurePosixPath(name).name.startswith("._")


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return True


def may_be_cp1252(content: bytes) -> bool:
    """Returns whether all bytes stand for characters in Windows-1252 and no line of them speaks for
    UTF-8; UTF-16 has zeros."""
    spoken = [line for line in content.split(b"\n") if not line.isascii()]
    undefined = (0x00, 0x81, 0x8D, 0x8F, 0x90, 0x9D)
    return not any(byte in content for byte in undefined) and not any(map(is_utf8, spoken))


def leads_outside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")
