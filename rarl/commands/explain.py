"""`rarl data explain`: opens the teacher, asks it, and writes what can be kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from rarl.data.mixture import MIXTURE_ENDINGS
from rarl.data.parquet import ParquetRows
from rarl.display import Display
from rarl.errors import UserError
from rarl.judge.client import is_address, read_key
from rarl.judge.server import without_password
from rarl.prepare.card import card_splits
from rarl.rationales.explain import (
    CACHE,
    FIGURES,
    RATIONALES,
    REPLIES,
    Explainer,
    Figures,
    figures_of,
    without_rationale,
    write_out,
)
from rarl.rationales.teacher import RemoteTeacher, SaidCache, Teacher
from rarl.serving.settings import is_loopback

SELF = "self"
ENGINE = "engine"  # a run directory in OUT, of a model of ours
FORMAT = 1  # of the figures


@dataclass(frozen=True)
class ExplainRequest:
    """What the user asks for. `teacher` is an address or SELF; `most` questions are asked at most.
    Raises UserError for what cannot be asked, and where images would leave this machine unasked."""

    data: Path
    out: Path
    teacher: str
    model: str
    attempts: int
    send_images: bool
    key_variable: str | None
    concurrency: int
    most: int | None

    def __post_init__(self) -> None:
        if self.teacher != SELF and not is_address(self.teacher):
            shown = without_password(self.teacher)
            raise UserError(f"--teacher: expected http://host:port/v1 or {SELF}, got '{shown}'")
        if not self.is_local and not self.send_images:
            raise UserError(
                f"--teacher {without_password(self.teacher)}: is another machine, to which the "
                f"images of {self.data} would go; say --send-images if they may leave this one"
            )
        if self.data.suffix in MIXTURE_ENDINGS:
            raise UserError(f"{self.data}: is a mixture; explain its data sets one by one")
        held_out = {"validation", "test"} & set(card_splits(self.data))
        if self.data.is_dir() and held_out:
            raise UserError(
                f"{self.data}: as a whole includes its {' and '.join(sorted(held_out))} split; "
                f"name the split to be explained, such as {self.data / 'train.parquet'}"
            )
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is a file; OUT is the folder to be made")

    @property
    def is_local(self) -> bool:
        """Whether the teacher is on this machine."""
        return self.teacher == SELF or is_loopback(urlsplit(self.teacher).hostname or "")


def explain(asked: ExplainRequest, display: Display) -> Figures:
    """Asks about every question that has no rationale, and writes OUT. Raises UserError."""
    data = ParquetRows(asked.data)
    missing = without_rationale(data)
    if not missing:
        raise UserError(f"{asked.data}: every one of {len(data)} questions has a rationale already")
    rows = missing
    if asked.most is not None:  # fewer ones are among more
        rows = sorted(np.random.default_rng(0).permutation(missing)[: asked.most].tolist())
    with ExitStack() as stack:
        stack.enter_context(owned(asked.out))
        cache = SaidCache(asked.out / CACHE)
        stack.callback(cache.close)
        teacher = stack.enter_context(open_teacher(asked, cache, display))
        explainer = Explainer(data, rows, teacher, asked.attempts)
        with display.working("looking up what was answered before"):
            explainer.look_up(cache)
        with display.telling(f"asking {teacher.name}", len(rows)) as tell:
            explainer.ask(lambda: tell(explainer.ended.total(), explainer.told()))
        found = figures_of(explainer.work, len(data), len(data) - len(missing), teacher.attempts)
        about = {
            "data": str(asked.data.resolve()),
            "teacher": teacher.name,
            "attempts": asked.attempts,
            **asdict(found),
            "format": FORMAT,
        }
        write_out(asked.out, data, explainer.work, teacher.source, about)
    return found


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Inside, the folder is there and no other process of this machine writes into it. Raises
    UserError for a folder of something else."""
    out.mkdir(parents=True, exist_ok=True)
    ours = {RATIONALES, REPLIES, FIGURES, "review", ENGINE}
    names = [one.name for one in out.iterdir() if not one.name.startswith((".", CACHE))]
    foreign = sorted(set(names) - ours)
    if foreign:
        raise UserError(
            f"{out}: holds files that are not of `rarl data explain`, such as {foreign[0]}; choose "
            "another OUT"
        )
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{out}: another process is at work in this folder; wait for it") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def open_teacher(asked: ExplainRequest, cache: SaidCache, display: Display) -> Iterator[Teacher]:
    """Inside, the teacher can be asked. Raises UserError."""
    if asked.teacher == SELF:
        from rarl.commands.own_teacher import open_own_teacher  # starts Ray and vLLM

        with open_own_teacher(asked.model, asked.data, asked.out / ENGINE, cache, display) as own:
            yield own
        return
    key = read_key(asked.key_variable, "--api-key-env")
    if not asked.is_local:
        where = without_password(asked.teacher)
        display.note(f"images, questions, options and answers go to {where}")
        if urlsplit(where).scheme == "http":
            display.note("warning: http:// to another machine is not encrypted")
    teacher = RemoteTeacher(
        asked.teacher,
        asked.model,
        cache,
        key=key,
        variable=asked.key_variable,
        local=asked.is_local,
        concurrency=asked.concurrency,
    )
    try:
        yield teacher
    finally:
        teacher.close()
