"""The one exception that is shown to the user as a single line."""


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where, and what to do about it.

    The command line prints the message alone, without a stack trace, and exits with code 2.
    """
