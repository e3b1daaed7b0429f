"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can correct: one line that says what was found, where, what was expected and what to do.

    The command line prints it without a traceback and exits with code 2 (`--debug` shows the traceback).
    """
