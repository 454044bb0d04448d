"""Exceptions: one for every error that a user can fix, and one for a requested end.

Every stage raises :class:`UserError` for a wrong file, row, setting or version. The command line prints it as one line and exits
with the exception's exit code. Any other exception is a bug in clsd and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix.

    Args:
        where: the file, row or setting.
        what: what is wrong there.
        hint: how to fix it.

    >>> print(UserError("news.yaml: train.epochs", "is missing", "add it"))
    news.yaml: train.epochs: is missing; add it
    """

    exit_code = 2

    def __init__(self, where: str, what: str, hint: str) -> None:
        self.where, self.what, self.hint = where, what, hint
        super().__init__(f"{where}: {what}; {hint}" if hint else f"{where}: {what}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        # Beam pickles exceptions between workers; the default would call __init__ with the one joined message.
        return (type(self), (self.where, self.what, self.hint))


class TryAgainError(UserError):
    """A passing failure: running the same command again fixes it."""

    exit_code = 75


class OutOfBoundsError(UserError):
    """A measurement is out of the user's bounds."""

    exit_code = 3


class Terminated(BaseException):
    """The process got SIGTERM and wrote a checkpoint. This is not an error, so it is not an ``Exception``."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` with the closest known word, or else the list of all known words.

    >>> did_you_mean("depfm", ["deepfm", "din"])
    "did you mean 'deepfm'?"
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "there is none"
