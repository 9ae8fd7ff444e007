from swiftplug.plugin.registry.finder import FoundPlugin, find_installed, missing_requirements

__all__ = ["FoundPlugin", "find_installed", "missing_requirements"]
