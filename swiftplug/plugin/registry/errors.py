"""What can be wrong with a plugin, and errors of its code described in one line."""

import importlib
import traceback
from pathlib import Path

from swiftplug.errors import ContractError
from swiftplug.formatting import printable

_OUR_FOLDER = Path(__file__).parent


class OptionError(ContractError):
    """An option that a user gave does not fit a plugin.

    Attributes:
        option: Its name.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


class MissingExtraError(Exception):
    """The extra of a plugin is not installed. The message continues "this plugin ..."."""


def describe_error(error: BaseException) -> str:
    """What went wrong and where: `NameError: name 'x' is not defined (acme/loss.py:12)`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    # If a module or an attribute is missing, the last frame is in the import machinery or here, not in the plugin.
    if not frames or frames[-1].filename == importlib.__file__ or Path(frames[-1].filename).parent == _OUR_FOLDER:
        return one_line(error)
    return f"{one_line(error)} ({printable(frames[-1].filename)}:{frames[-1].lineno})"


def describe_error_in(path: Path, shown: str, error: BaseException) -> str:
    """What went wrong in a file that the user gave as `shown`: `my.py:12: NameError: name 'x' is not defined`."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{shown}:{error.lineno}: SyntaxError: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{shown}:{lines[-1]}: {one_line(error)}" if lines else f"{shown}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """An error's type and message."""
    message = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
