"""A folder that is there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rarl.data.parquet import CARD
from rarl.errors import UserError

PARTIAL = ".partial-"


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`; on success it is flushed to disk and takes that name, in place of a data
    set that was there before. What killed attempts left beside it is removed.

    Raises UserError where `out` holds anything but an earlier data set, or where nothing can be written.
    """
    out = out.absolute()
    require_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{PARTIAL}"))
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written: {error.strerror or error}") from None
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # held while this process lives, however it ends
    try:
        yield folder
        flush(folder)
        folder.chmod(0o755)
        put_in_place(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def require_replaceable(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / CARD).is_file():
        raise UserError(f"{out}: holds files that are no data set of `rarl prepare`; choose another OUT, or empty it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT is the folder to be made")


def remove_abandoned(out: Path) -> None:
    """Partial folders of this name whose process is gone: nobody holds their lock."""
    for left in out.parent.glob(f".{out.name}{PARTIAL}*"):
        handle = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # another `prepare` is at work
        finally:
            os.close(handle)
        shutil.rmtree(left, ignore_errors=True)


def flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def put_in_place(folder: Path, out: Path) -> None:
    """Moves an earlier data set aside for the moment; it comes back where the new one cannot take its place."""
    if not out.exists():
        folder.rename(out)
        return
    # Not called partial: were this process killed right here, the next one must not remove it.
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.replaced-"))
    out.rename(aside / "data")
    try:
        folder.rename(out)
    except OSError:
        (aside / "data").rename(out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
