"""The hash of a plugin's source: it covers the modules of its own that the plugin imports, and no others."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from swiftplug.plugin.registry import PluginChoice, Registry

PACKAGE = {
    "acme/__init__.py": "from .core import f\n",
    "acme/core.py": """
import torch, json
from . import used
from .deep.inner import value
import acme_helper as helper
def f(outputs, labels):
    from acme import late
    import importlib
    importlib.import_module("acme.by_name")
    importlib.import_module(".beside", "acme")
""",
    "acme/used.py": "",
    "acme/deep/__init__.py": "",
    "acme/deep/inner.py": "from ..twice import nothing\nvalue = 1\n",
    "acme/twice.py": "nothing = 0\n",
    "acme/late.py": "def broken(:\n",
    "acme/by_name.py": "",
    "acme/beside.py": "",
    "acme/unused.py": "",
    "acme_helper.py": "",
    "other/__init__.py": "",
}
OWN = set(PACKAGE) - {"acme/unused.py", "other/__init__.py"}
NAMESPACE_PACKAGE = {
    "files": {
        "company/acme/loss.py": "from company.acme import helper\nfrom company import other\n"
        "def f(outputs, labels): ...\n",
        "company/acme/helper.py": "",
        "company/other/__init__.py": "",
    },
    "used": {"company/acme/loss.py", "company/acme/helper.py"},
    "losses": {"mine": "company.acme.loss:f"},
    "folder": "site-packages",
    "plugin_files": [],
}
FILE_AND_FOLDER = {
    "files": {
        "mine.py": "import torch, helper_of_mine\nfrom swiftplug.plugin import *\n"
        "@register_loss_func('mine')\ndef f(outputs, labels):\n    from parts_of_mine.late import x\n",
        "helper_of_mine.py": "",
        "parts_of_mine/late.py": "",
        "unused_by_mine.py": "",
        "lib/site-packages/helper.py": "",
    },
    "used": {"mine.py", "helper_of_mine.py", "parts_of_mine/late.py"},
    "losses": {},
    "folder": "project",
    "plugin_files": ["mine.py"],
}


def digest(name: str = "mine", **files: Any) -> str:
    return Registry.discover(**files).resolve("loss", PluginChoice(name=name), "--loss").source_hash


def that_change_it(site: Path, names: set[str], **discover: Any) -> set[str]:
    """The files that change the hash when a comment is added to them."""
    changing = set()
    before = digest(**discover)
    for file in names:
        path = site / file
        text = path.read_text()
        path.write_text(f"{text}# changed\n")
        changing |= {file} if digest(**discover) != before else set()
        path.write_text(text)
    assert digest(**discover) == before
    return changing


@pytest.mark.parametrize("folder", ["project/src", "venv/lib/site-packages"])
@pytest.mark.parametrize("has_record", [True, False])
def test_of_a_distribution(install: Any, folder: str, has_record: bool) -> None:
    record = "".join(f"{path},,\n" for path in [*OWN, "acme/unused.py"])
    files = {**PACKAGE, **({"acme-1.0.dist-info/RECORD": record} if has_record else {})}
    site = install("acme", {"losses": {"mine": "acme:f"}}, files, folder=folder)
    # Without a list of its files among those of others, only the plugin's own package is surely its own.
    unknown = {"acme_helper.py"} if folder.endswith("site-packages") and not has_record else set()
    assert that_change_it(site, set(PACKAGE)) == OWN - unknown


@pytest.mark.parametrize("layout", [NAMESPACE_PACKAGE, FILE_AND_FOLDER])
def test_of_a_namespace_package_and_of_a_file(install: Any, layout: dict[str, Any]) -> None:
    files = layout["files"]
    record = {"acme-1.0.dist-info/RECORD": "".join(f"{name},,\n" for name in layout["used"])}
    site = install("acme", {"losses": layout["losses"]}, files | record, folder=layout["folder"])
    plugin_files = [site / name for name in layout["plugin_files"]]
    assert that_change_it(site, set(files), files=plugin_files) == layout["used"]


def test_a_built_in_has_only_built_ins_as_its_own() -> None:
    loaded = Registry.discover().resolve("loss_scale", PluginChoice(name="react"), "--loss-scale")
    package = Path(loaded.source_file or "").parents[2]
    modules = ("__init__", "builtin/__init__", "builtin/loss_scales/__init__", "builtin/loss_scales/keywords")
    own = hashlib.sha256()
    for name in (*modules, "builtin/loss_scales/presets", "builtin/patterns"):
        own.update((package / f"{name}.py").read_bytes())
    assert loaded.source_hash == own.hexdigest()
