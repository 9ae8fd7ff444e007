"""How plugins are found, chosen, checked and given options."""

from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.plugin.registry.registry import BoundMetric, BoundTuner, Check, LoadedPlugin, Registry

__all__ = ["KINDS", "BoundMetric", "BoundTuner", "Check", "LoadedPlugin", "PluginChoice", "Registry"]
