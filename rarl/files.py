"""Files and folders that a reader, or a run that continues, finds with their old content or with
their new one, never with half of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Hidden folders beside a folder that is being replaced: `.NAME.partial-xyz` is the new one, which
# is not whole yet; `.NAME.replaced` is the old one between the two renames.
PARTIAL, REPLACED = ".partial-", ".replaced"


@contextmanager
def errors_named(path: Path, temporary: Path) -> Iterator[None]:
    """Names `path` in an OSError of the disk that names `temporary`, something in it, or nothing,
    whichever library met it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or temporary).startswith(str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it is flushed to disk and takes
    `path`'s name. Raises OSError that names `path` for a failure of the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with errors_named(path, temporary):
            yield temporary
            flush(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`; on success it is flushed to disk and takes
    `path`'s name, in place of an old folder, which stays on failure. What a killed process leaves
    is cleared away by the next call for the same `path`; the old folder comes back if the kill came
    between the two renames. Raises OSError that names `path` for a failure of the disk."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{PARTIAL}"))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        # The lock is held while this process lives, however it ends. Some network file systems
        # know no locks; leftovers stay there until somebody removes them.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        with errors_named(path, temporary):
            yield temporary
            flush_folder(temporary)
            temporary.chmod(0o755)
            exchange(temporary, path)
            flush(path.parent)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path`. An old folder there gets the temporary one's name, or comes
    back if the new one cannot take its place."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = path.with_name(f".{path.name}{REPLACED}")
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    # Under this name a kill during its removal cannot make the next call take it for a whole one.
    aside.rename(temporary)


def clear_leftovers(path: Path) -> None:
    """Puts back or removes what killed calls of `replacing_folder` left beside `path`."""
    aside = path.with_name(f".{path.name}{REPLACED}")
    if aside.exists() and not path.exists():
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)
    for folder in path.parent.iterdir():
        if folder.name.startswith(f".{path.name}{PARTIAL}") and is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def is_abandoned(folder: Path) -> bool:
    """Returns whether nobody holds the folder's lock; False where that cannot be known."""
    try:
        with opened(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yields a handle of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Waits until the disk holds what was written to the file, or what the folder lists."""
    with opened(path) as handle:
        os.fsync(handle)


def flush_folder(folder: Path) -> None:
    """Waits until the disk holds all files and folders below `folder`, and the folder itself."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            flush(path)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of the file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
