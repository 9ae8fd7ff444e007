"""How plugins are found, chosen, checked and given options."""

from swiftplug.plugin.registry.registry import BoundMetric, BoundTuner, Check, LoadedPlugin, Registry

__all__ = ["BoundMetric", "BoundTuner", "Check", "LoadedPlugin", "Registry"]
