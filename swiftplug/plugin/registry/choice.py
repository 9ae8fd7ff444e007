from swiftplug.plugin.registry.options import PluginChoice, WrittenChoice, fields_of

__all__ = ["PluginChoice", "WrittenChoice", "fields_of"]
