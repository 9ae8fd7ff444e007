"""A new distribution of plugins, or a new file of them, with a working example of each kind to change.

`package` and `tests` are the examples and their tests as they are written; `templates` has the files around them.
"""

from swiftplug.scaffold.scaffold import NewPlugin, new_distribution, new_file

__all__ = ["NewPlugin", "new_distribution", "new_file"]
