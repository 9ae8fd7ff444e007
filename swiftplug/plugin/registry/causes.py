"""Errors of other people's code, told in one line."""

import importlib
import traceback
from pathlib import Path

_OUR_FOLDER = Path(__file__).parent


def cause_of(error: BaseException) -> str:
    """What went wrong and where: `NameError: name 'x' is not defined (acme/loss.py:12)`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = [it for it in traceback.extract_tb(error.__traceback__) if not it.filename.startswith("<frozen")]
    # What was imported was not there, or what it was called for was not in it: that line is not theirs.
    if not frames or frames[-1].filename == importlib.__file__ or Path(frames[-1].filename).parent == _OUR_FOLDER:
        return _one_line(error)
    return f"{_one_line(error)} ({frames[-1].filename}:{frames[-1].lineno})"


def cause_in(error: BaseException, path: Path, shown: str) -> str:
    """What went wrong, led by the line of one file that it came through: `my.py:12: NameError: ...`.

    Args:
        error: What was raised.
        path: The file, as the interpreter knows it.
        shown: The file, as the user wrote it.
    """
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{shown}:{error.lineno}: SyntaxError: {error.msg}"
    lines = [it.lineno for it in traceback.extract_tb(error.__traceback__) if it.filename == str(path)]
    place = f"{shown}:{lines[-1]}" if lines else shown
    return f"{place}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
