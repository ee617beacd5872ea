"""`rarl data review`: the page for a clinician, on this machine alone, until it is stopped; and the
marks read back."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

from rarl.commands.serve import LOOPBACK, require_free, url_of
from rarl.errors import UserError
from rarl.rationales.marks import (
    agreements,
    apply_marks,
    current_marks,
    open_rationales,
    read_marks,
    require_reviewer,
    to_review,
)

PORT = 8020  # where nothing else is said
Say = Callable[[str], None]


def review(out: Path, reviewer: str | None, port: int | None, say: Say) -> None:
    """Serves the page until it is stopped. Raises UserError."""
    import uvicorn

    from rarl.serving.review.app import build_review

    name, port = require_reviewer(reviewer or own_name()), port or PORT
    app = build_review(out, name)
    tell_progress(out, say)
    require_free(LOOPBACK, port)
    say(f"page for {name}: {url_of(LOOPBACK, port)}; each mark is kept at once; Ctrl-C ends it")
    settings = uvicorn.Config(
        app,
        host=LOOPBACK,
        port=port,
        log_level="error",
        lifespan="off",
        server_header=False,
        h11_max_incomplete_event_size=16 << 10,
    )
    uvicorn.Server(settings).run()


def own_name() -> str:
    """Returns what this machine calls the user. Raises UserError where it does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise UserError("this machine does not know your name; say --reviewer NAME") from None


def tell_progress(out: Path, say: Say) -> None:
    """Says how far each reviewer is, and how far every two agree."""
    data, marks = open_rationales(out), read_marks(out)
    total = len(to_review(data))
    for reviewer, own in current_marks(marks, data).items():
        say(f"{reviewer} has marked {len(own)} of {total} rationales")
    for one in agreements(marks, data):
        say(one.line())


def read_back(out: Path, target: Path, say: Say) -> None:
    """Writes the data set with the reviewers' marks. Raises UserError."""
    applied = apply_marks(out, target)
    tell_progress(out, say)
    for line in applied.lines():
        say(line)
    say(f"wrote {target}")
