"""How plugins are found, chosen, checked and given their options."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swiftplug.plugin.registry.errors import describe_error
from swiftplug.plugin.registry.finder import BUILT_IN, FoundPlugin
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.registry import Check, LoadedPlugin, Registry
from swiftplug.plugin.registry.scorers import REFERENCE_NAMES, BoundScorer

if TYPE_CHECKING:
    from swiftplug.plugin.registry.options import BoundMetric, BoundTuner, PluginChoice, PluginField, fields_of

__all__ = [
    "BUILT_IN",
    "KINDS",
    "REFERENCE_NAMES",
    "BoundMetric",
    "BoundScorer",
    "BoundTuner",
    "Check",
    "FoundPlugin",
    "LoadedPlugin",
    "PluginChoice",
    "PluginField",
    "Registry",
    "describe_error",
    "fields_of",
]


def __getattr__(name: str) -> Any:
    """Import what options need, and with it pydantic, at the first use: `list-plugins` has none."""
    if name in __all__:
        return getattr(import_module("swiftplug.plugin.registry.options"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
