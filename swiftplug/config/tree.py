"""A config before it is checked: plain values, and for each where it was said."""

from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Origin(NamedTuple):
    """Where a value was said.

    Attributes:
        place: `train.yaml:7`, or the option as typed.
        in_file: Whether the place is a line of a file, which does not name the key.
    """

    place: str
    in_file: bool = False


class Origins(dict[Path, Origin]):
    """For each path that was said somewhere, where."""

    def where(self, path: Path) -> str:
        """The place of a path, or of the nearest thing around it, to begin an error message with."""
        key = ".".join(map(str, path))
        origin = self.nearest(path)
        if origin is None:
            return key
        return f"{origin.place}: {key}" if origin.in_file else origin.place

    def nearest(self, path: Path) -> Origin | None:
        """The origin of a path or of the nearest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self:
                return self[path[:length]]
        return None


class Tree:
    """A nested mapping whose values know where they were said.

    Attributes:
        value: The mapping.
        origins: Where each of its parts was said.
    """

    def __init__(self, value: dict[str, Any], origins: Origins) -> None:
        self.value = value
        self.origins = origins

    def put(self, path: Path, value: Any, origin: Origin) -> None:
        """Set a value, whatever was there; mappings on the way are made.

        Raises:
            KeyError: Something on the way is no mapping; the argument is the path to it.
        """
        at: Any = self.value
        for depth, part in enumerate(path):
            if not isinstance(at, list if isinstance(part, int) else dict):
                raise KeyError(path[:depth])
            if depth == len(path) - 1:
                break
            if isinstance(at, dict) and at.get(part) is None:
                at[part] = {}
                self.origins[path[: depth + 1]] = origin
            at = at[part]
        at[path[-1]] = value
        for said in [said for said in self.origins if said[: len(path)] == path]:
            del self.origins[said]
        self.origins[path] = origin

    def get(self, *path: str | int) -> Any:
        """The value at a path, None where there is none."""
        at: Any = self.value
        for part in path:
            if isinstance(at, dict):
                at = at.get(part)
            elif isinstance(at, list) and isinstance(part, int) and part < len(at):
                at = at[part]
            else:
                return None
        return at
