"""How plugins are found, chosen, checked and given their options."""

from swiftplug.plugin.registry.errors import describe_error
from swiftplug.plugin.registry.finder import BUILT_IN, FoundPlugin
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.options import BoundMetric, BoundTuner, PluginChoice, PluginField, fields_of
from swiftplug.plugin.registry.registry import Check, LoadedPlugin, Registry
from swiftplug.plugin.registry.scorers import REFERENCE_NAMES, BoundScorer

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
