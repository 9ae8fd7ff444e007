"""The site: `sphinx-build -W docs docs/_build`."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import reference_data

project = "swiftplug"
release = importlib.metadata.version("swiftplug")
copyright = "the swiftplug developers"
html_title = f"swiftplug {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have types and shapes, in words
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # docstrings are written with single backticks
smartquotes = False  # `--set` has two hyphens
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages of the reference are Jinja templates: what they list is read from the code at each build."""
    if docname.startswith("reference/"):
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        source[0] = environment.from_string(source[0]).render(vars(reference_data))


def read_again(app: Sphinx, *_: Any) -> list[str]:
    """The pages to read again though their files have not changed."""
    return [docname for docname in app.env.found_docs if docname.startswith("reference/")]


def skip_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: the class describes them."""
    return True if isinstance(member, type(reference_data.Command.name)) else None


def setup(app: Sphinx) -> None:
    """Connect what is ours."""
    app.connect("source-read", fill_in)
    app.connect("env-get-outdated", read_again)
    app.connect("autodoc-skip-member", skip_fields)
