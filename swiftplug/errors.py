"""The exceptions for mistakes of the user or a plugin and for Ctrl-C, and the hints at the end of a message."""

import signal
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """Bad input. The command line prints it as one line, without a traceback, and exits with code 2.

    The message says where (file, line, key or option), what was found, what was expected, and the nearest right word.
    """


class ContractError(Exception):
    """A plugin does not fit its contract, or an option does not fit it. The message continues "this plugin ..."."""


class Interrupted(KeyboardInterrupt):
    """A signal has stopped the command.

    Args:
        number: The signal: SIGINT (Ctrl-C) or SIGTERM.
        message: What is saved and how to go on; empty if there is nothing to say.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that led to it, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption that led to an exception: libraries raise errors of their own where an import is interrupted."""
    return next((each for each in causes(error) if isinstance(each, KeyboardInterrupt)), None)


def closest(word: str, words: Iterable[str]) -> str:
    """The end of an error message: what the user probably meant; empty if nothing is close.

    Case, hyphens and underscores do not matter, and the word itself is never the answer.
    """
    spellings = {_spelling(each): each for each in sorted({*words} - {word})}
    close = get_close_matches(_spelling(word), spellings, n=1, cutoff=0.6)
    return f"; did you mean {spellings[close[0]]!r}?" if close else ""


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error message: what the user probably meant, or else all there is to choose from.

    Example:
        >>> nearest("foccal", ["focal", "dft"])
        "; did you mean 'focal'?"
        >>> nearest("zzz", ["focal", "dft"])
        '; choose from: dft, focal'
    """
    known = sorted({*words} - {word})
    return closest(word, known) or (f"; choose from: {', '.join(known)}" if known else "")


def _spelling(word: str) -> str:
    return word.lower().replace("-", "_")


def broken_link(path: str | Path) -> str:
    """The end of an error message about a path that is not there: the target, if it is a symbolic link; else empty."""
    path = Path(path).expanduser()
    return f": a link to {path.readlink()}, which does not exist" if path.is_symlink() and not path.exists() else ""
