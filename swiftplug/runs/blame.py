"""Whose fault an exception is: the plugin's in whose file it arose."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin


@contextmanager
def blaming(plugins: Sequence[LoadedPlugin]) -> Iterator[None]:
    """Turn an exception that arose in a stranger's plugin into one line that names it.

    Args:
        plugins: The plugins in use. What arises in a built-in is a bug of ours, and passes as it is.

    Raises:
        UserError: A plugin raised; its exception is the cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        strangers = [plugin for plugin in plugins if plugin.source_file and plugin.found.distribution != "swiftplug"]
        for file, line in reversed(frames):
            for plugin in strangers:
                if Path(plugin.source_file or "").resolve() == file:
                    found = plugin.found
                    raise UserError(f"{found} raised {type(error).__name__}: {error} ({file.name}:{line})") from error
        raise
