"""`swiftplug.json`: what a run's folder and each of its checkpoints say of how their weights are loaded."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.errors import UserError

MARKER = "swiftplug.json"


class Marker(NamedTuple):
    """How to load what lies beside it.

    Attributes:
        base_model: The base model as the config named it: a folder, hub id or model plugin, with its options.
        model_options: The config's `model_options`.
        seed: The run's seed, which a model plugin may have drawn its weights from.
        tuner: The qualified name of the tuner plugin, with its options. A file that it came from is not named: what is
            downloaded must not say which code runs here.
    """

    base_model: dict[str, Any]
    model_options: dict[str, Any]
    seed: int
    tuner: dict[str, Any]


def write_marker(folder: Path, marker: Marker) -> None:
    """Write `swiftplug.json` into a folder; it is the last file of a save, so its presence says that all is there."""
    text = json.dumps(marker._asdict(), indent=2, ensure_ascii=False) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")


def read_marker(folder: str | Path) -> Marker | None:
    """Read the `swiftplug.json` of a folder; None where there is none.

    Raises:
        UserError: The file is there, but not as a run writes it.
    """
    path = Path(folder).expanduser() / MARKER
    if not path.is_file():
        return None
    try:
        return Marker(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not as a run writes it: {error}") from error
