"""The one exception that is shown to the user as a single line, and what a full disk is to be
called."""

from __future__ import annotations

import errno

FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do
    about it.

    The command line prints the message alone, without a stack trace, and exits with code 2.
    """


def storage_fault(error: OSError, place: object) -> str | None:
    """In words, where it is the disk's fault; None where it is ours."""
    if error.errno not in FULL_OR_READ_ONLY:
        return None
    return (
        f"{error.filename or place}: {error.strerror}; make room, or let it be written, and the "
        "same command continues where this one stopped"
    )


def last_line(error: object) -> str:
    """What went wrong inside an actor: the end of Ray's copy of its stack trace. Empty where
    nothing is said."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
