"""Plugins for swiftplug, a module each: a module is imported only when a run uses its plugin."""
