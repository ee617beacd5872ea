"""The one exception that is shown to the user as a single line."""


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do about it.

    The command line prints the message alone, without a stack trace, and exits with code 2.
    """


def last_line(error: object) -> str:
    """What went wrong inside an actor: the end of Ray's copy of its stack trace. Empty where nothing is said."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
