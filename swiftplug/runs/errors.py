"""What a run reports as one clear line: errors of third-party plugins, a full disk, and an interruption."""

import errno
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swiftplug.errors import Interrupted, UserError, causes, interruption
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.errors import one_line

# safetensors and torch's archive writer raise their own exceptions, recognisable only by their message.
_DISK_FULL_TEXTS = ("No space left", "disk is full", "inline_container.cc", "PytorchStreamWriter failed")


@contextmanager
def naming_plugins(plugins: Iterable[LoadedPlugin]) -> Iterator[None]:
    """Turn an exception from a third-party plugin's file into a UserError that names the plugin.

    An exception from a built-in plugin is a bug of swiftplug and is raised unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        third_party = {
            Path(plugin.source_file).resolve(): plugin.found
            for plugin in plugins
            if plugin.source_file and plugin.found.distribution != "swiftplug"
        }
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            file = Path(frame.filename).resolve()
            if file in third_party:
                place = f"{file.name}:{frame.lineno}"
                raise UserError(f"{third_party[file]} raised {one_line(error)} ({place})") from error
        raise


@contextmanager
def naming_full_disk(
    where: Path | str, hint: str = "free some space and continue with --resume (what was saved before is unharmed)"
) -> Iterator[None]:
    """Turn a full-disk error into a UserError that names the run's folder, and how to continue."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_full(error):
            raise
        raise UserError(f"{where}: the disk is full; {hint}") from error


@contextmanager
def explaining_interruption(explain: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C, or SIGTERM, end a run with a message that says what is saved and how to go on."""
    try:
        yield
    except BaseException as error:
        stopped = interruption(error)
        if stopped is None or str(stopped):
            raise  # it is no interruption, or one that is explained
        number = stopped.number if isinstance(stopped, Interrupted) else signal.SIGINT
        raise Interrupted(number, explain()) from None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, means that the disk is full."""
    return any(
        (isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(each) for text in _DISK_FULL_TEXTS)
        for each in causes(error)
    )
