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
from rarl.prepare.card import SKIPPED, card_files
from rarl.prepare.contact_sheet import sheet_path

PARTIAL, REPLACED = ".partial-", ".replaced-"


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out`; on success it is flushed to disk and takes that name,
    in place of a data set that was there before. What killed attempts left beside it is put back or
    removed.

    Raises UserError where `out` holds anything but an earlier data set, or where nothing can be
    written.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for aside in abandoned(out, REPLACED):
            put_back(aside, out)
        require_replaceable(out)
        for left in abandoned(out, PARTIAL):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{PARTIAL}"))
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written: {error.strerror or error}") from None
    try:
        with held(folder):
            yield folder
            flush(folder)
            folder.chmod(0o755)
            put_in_place(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; OUT is the folder to be made")
    foreign = first_foreign(out, own_files(out)) if out.is_dir() else None
    if foreign is not None:
        raise UserError(
            f"{out}: holds files that are no data set of `rarl prepare`, such as {foreign.relative_to(out)}; "
            "choose another OUT, or empty it"
        )


def own_files(out: Path) -> set[Path]:
    """What `rarl prepare` and `rarl data show` make in `out`, with the folders of shards; empty
    where its card is not ours: other programs write a `dataset.json` too."""
    listed = card_files(out)
    if listed is None:
        return set()
    files = {out / CARD, out / SKIPPED, sheet_path(out)}
    for file in (one for one in listed if one.is_relative_to(out)):
        files |= {file, *file.parents, sheet_path(out / file.relative_to(out).parts[0])}
    return files


def first_foreign(folder: Path, ours: set[Path]) -> Path | None:
    for path in sorted(folder.iterdir()):
        if path not in ours:
            return path
        inside = first_foreign(path, ours) if path.is_dir() and not path.is_symlink() else None
        if inside is not None:
            return inside
    return None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locked while this process lives, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def abandoned(out: Path, mark: str) -> list[Path]:
    """Hidden folders beside `out` whose process is gone: nobody holds their lock."""
    return [
        path
        for path in out.parent.iterdir()
        if path.name.startswith(f".{out.name}{mark}") and not is_held(path)
    ]


def is_held(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True  # another `prepare` is at work
    finally:
        os.close(handle)
    return False


def flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def put_in_place(folder: Path, out: Path) -> None:
    """Moves an earlier data set aside for the moment; it comes back where the new one cannot take
    its place, whatever the reason, or at the latest with the next `prepare`."""
    if not out.exists():
        folder.rename(out)
        return
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{REPLACED}"))
    with held(aside):
        try:
            out.rename(aside / "data")
            folder.rename(out)
        finally:
            put_back(aside, out)


def put_back(aside: Path, out: Path) -> None:
    """What was set aside takes its place again if that is empty; otherwise it has been replaced and
    goes."""
    if not out.exists() and (aside / "data").exists():
        (aside / "data").rename(out)
    shutil.rmtree(aside, ignore_errors=True)
