from swiftplug.plugin.registry.errors import describe_error as cause_of

__all__ = ["cause_of"]
