"""Where a loaded plugin's code is, and its hash, by which a resumed run knows that a plugin has changed."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """The source of a plugin.

    Attributes:
        file: The file that defines it; None where there is none (a module written in C).
        sha256: The hash of that file and of the module that names it, in hexadecimal.
    """

    file: str | None
    sha256: str


def source_of(plugin: Any, named_in: str | None) -> Source:
    """The source of a plugin's object.

    Args:
        plugin: The object.
        named_in: The file of the module that its entry point names, or the `--plugin` file.
    """
    try:
        defined_in = inspect.getsourcefile(origin_of(plugin))
    except TypeError:  # a built-in class or function
        defined_in = None
    files = [file for file in dict.fromkeys((defined_in, named_in)) if file]
    import hashlib  # listing plugins should not wait for it

    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return Source(files[0] if files else None, digest.hexdigest())


def origin_of(plugin: Any) -> Any:
    """The class or function that a plugin is, is made of, or is an instance of."""
    if isinstance(plugin, tuple) and plugin:
        plugin = plugin[0]
    if isinstance(plugin, partial):
        plugin = plugin.func
    return inspect.unwrap(plugin) if inspect.isclass(plugin) or inspect.isroutine(plugin) else type(plugin)
