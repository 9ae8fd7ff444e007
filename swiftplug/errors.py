"""The exceptions for mistakes of the user and for Ctrl-C, and the hint at the end of a message."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The command line prints it as one line, without a traceback, and exits with code 2.

    The message says where (file, line, key or option), what was found, what was expected, and the nearest right word.
    """


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the command.

    Args:
        number: The signal: SIGINT (Ctrl-C) or SIGTERM.
        message: What is saved and how to go on; empty if there is nothing to say.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error message: what the user probably meant, or all there is to choose from.

    Example:
        >>> nearest("foccal", ["focal", "dft"])
        "; did you mean 'focal'?"
        >>> nearest("zzz", ["focal", "dft"])
        '; choose from: dft, focal'
    """
    known = sorted(set(words))
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from: {', '.join(known)}" if known else ""
