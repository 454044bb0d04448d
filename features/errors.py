"""The one exception for everything a user can mend, and the one for being asked to end.

Every stage raises :class:`UserError` for a wrong file, row, setting or version; the command line prints it as one
line and leaves with the exception's exit code, 2 for most. Any other exception is a bug of ours and leaves with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        where: the file, row or setting, as the user would look for it.
        what: what is wrong there.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, where: str, what: str, hint: str) -> None:
        self.where, self.what, self.hint = where, what, hint
        super().__init__(f"{where}: {what}; {hint}" if hint else f"{where}: {what}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        # Beam pickles exceptions between workers; the default would call __init__ with the one joined message.
        return (type(self), (self.where, self.what, self.hint))


class TryAgainError(UserError):
    """Nothing is wrong but what has passed: running the same again mends it."""

    exit_code = 75


class OutOfBoundsError(UserError):
    """Nothing is wrong with how it was asked: what was measured is not what the user's bounds let pass."""

    exit_code = 3


class Terminated(BaseException):
    """The process was asked to end (SIGTERM) and did so after a checkpoint: no error, and not for a handler of errors."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the closest known word, else the list of all of them."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "there is none"
