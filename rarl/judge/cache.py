"""Verdicts, and other answers, on disk by the content of what was asked."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

from rarl.judge.candidate import Candidate
from rarl.schema import Verdict

BUSY_SECONDS = 30.0  # another process may be writing
TABLE = "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
SELECT = "SELECT verdict FROM verdicts WHERE key = ?"
LOG = logging.getLogger(__name__)
A = TypeVar("A")  # what is kept


def verdict_key(identity: Sequence[str], candidate: Candidate) -> str:
    """Returns a hex SHA-256 over who is asked, in which words (both are the identity), and about
    what."""
    content = json.dumps([list(identity), asdict(candidate)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Cache(ABC, Generic[A]):
    """A SQLite file, for any number of threads and processes. It only saves time: when it fails,
    answers are asked for again. A file that is no database is moved aside, to `moved_aside`.

    The workers of one run keep a file each: `judge.sqlite`, `judge-1.sqlite`, … Those that are
    there when a cache is opened are read too, so that a run which is continued by another number
    of workers asks nothing twice; one that cannot be read is ignored, and none is changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moved_aside: Path | None = None
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = connect(path)
        except sqlite3.OperationalError:
            raise  # locked, read-only, no space: the file itself may be well
        except sqlite3.DatabaseError as error:
            self.moved_aside = move_aside(path)
            name = self.moved_aside.name
            LOG.warning("%s is damaged (%s); moved to %s, starting afresh", path, error, name)
            self._connection = connect(path)
        # Other workers' files have the same name with another number, or with none.
        stem = re.escape(re.sub(r"-\d+$", "", path.stem))
        name_of_one = re.compile(rf"{stem}(-\d+)?{path.suffix}")
        others = sorted(one for one in path.parent.iterdir() if name_of_one.fullmatch(one.name))
        opened = (read_only(one) for one in others if one != path)
        self._all = [self._connection, *(one for one in opened if one)]

    @abstractmethod
    def read(self, text: str) -> A:
        """Returns what was kept as JSON. Raises ValueError or TypeError for anything else."""

    @abstractmethod
    def keeps(self, answer: A) -> bool:
        """Says whether an answer, a dataclass, is worth keeping."""

    def get(self, key: str) -> A | None:
        """Returns the answer of this file, or else of another worker's; None where none has it."""
        with self._lock:
            for connection in self._all:
                try:
                    if row := connection.execute(SELECT, (key,)).fetchone():
                        return self.read(row[0])
                except (sqlite3.Error, ValueError, TypeError) as error:
                    message = "%s: an answer could not be read (%s); asking again"
                    LOG.warning(message, self.path, error)
        return None

    def put(self, key: str, answer: A) -> None:
        """Keeps an answer; the first one for a key stays."""
        if not self.keeps(answer):
            return
        try:
            with self._lock, self._connection:
                row = (key, json.dumps(asdict(answer)))  # type: ignore[call-overload]
                self._connection.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", row)
        except sqlite3.Error as error:
            LOG.warning("%s: an answer could not be kept (%s)", self.path, error)

    def __len__(self) -> int:
        """Returns the number of answers in this file; other workers' are not counted."""
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            for connection in self._all:
                connection.close()


class VerdictCache(Cache[Verdict]):
    """Verdicts; "unreachable" says nothing, and is not kept."""

    def read(self, text: str) -> Verdict:
        return Verdict(**json.loads(text))

    def keeps(self, answer: Verdict) -> bool:
        return answer.status != "unreachable"


def connect(path: Path) -> sqlite3.Connection:
    """Opens a file, or makes it. Raises sqlite3.DatabaseError where it is damaged."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        # No write-ahead log: it needs memory shared by all users, and a run directory may lie on a
        # network file system.
        for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA synchronous = NORMAL", TABLE):
            connection.execute(statement)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        return connection
    except BaseException:
        connection.close()
        raise


def read_only(path: Path) -> sqlite3.Connection | None:
    """Opens another worker's file; returns None where it cannot be read."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        found = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
        found.execute(SELECT, ("",)).fetchone()
        return found
    except sqlite3.Error as error:
        LOG.warning("%s: its verdicts cannot be read (%s); asking again", path, error)
        return None


def move_aside(path: Path) -> Path:
    """Renames the file to the first free `name.damaged-N`; its journals, which belong to it, go."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
    target = next(name for name in names if not name.exists())
    path.rename(target)
    for suffix in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return target
