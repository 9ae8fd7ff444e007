"""Pages to look at a run: each is one file that loads nothing from the network.

Texts of models and datasets are escaped by the template or, for a script, embedded as escaped JSON, which it puts into
text nodes only; the content security policy of a page blocks all scripts but its own.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from swiftplug.config.yaml_file import write_inline
from swiftplug.formatting import format_command, format_number
from swiftplug.runs.folder import atomic_path

_HEAD, _TAIL = 14_000, 6_000
"""Of a text longer than both together, this many characters are shown; the tail has its final answer."""

# Characters that could end a script element or a line of a script.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


def write_page(path: Path, template: str, **context: Any) -> None:
    """Write a page as a file that appears whole or not at all; see `render_page` for the arguments."""
    with (
        atomic_path(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.writelines(render_page(template, **context))


def render_page(
    template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), more_style: str = "", **context: Any
) -> Iterator[str]:
    """The text of a page, in pieces.

    Args:
        template: A template that extends `runs/page/base.html.jinja`. This and all further names are of files under
            `swiftplug`.
        styles: CSS files, besides the one of all pages.
        scripts: JavaScript files, besides the one of all pages, which is left out if there are no others.
        more_style: CSS behind all others.
        **context: What the template shows: a `title`, `facts` about the run as labels and values, and more of its own.
    """
    # Each further script is a block, so that its names do not meet those of the first.
    sources = [_source(name) if name == scripts[0] else f"{{\n{_source(name)}\n}}" for name in scripts]
    script = "\n".join([_source("runs/page/page.js"), *sources]) if scripts else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=PackageLoader("swiftplug", "")
    )
    environment.filters |= {"number": format_number, "command": lambda words: format_command(*words), "inline": _inline}
    return environment.get_template(template).generate(
        style=Markup("\n".join([*map(_source, ["runs/page/page.css", *styles]), more_style])),
        script=Markup(script),
        script_source=Markup(f"'sha256-{digest}'" if scripts else "'none'"),
        **context,
    )


def _inline(options: Mapping[str, Any]) -> str:
    """Options of a plugin as pages show them."""
    return ", ".join(f"{name}: {write_inline(value)}" for name, value in options.items())


def _source(name: str) -> str:
    return files("swiftplug").joinpath(name).read_text(encoding="utf-8")


def escaped_json(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def clipped(text: str, head: int = _HEAD, tail: int = _TAIL) -> str | list[str | int]:
    """The text, or a very long text's head, the number of characters left out, and its tail."""
    left_out = len(text) - head - tail
    return text if left_out <= 0 else [text[:head], left_out, text[-tail:]]
