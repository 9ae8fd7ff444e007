from swiftplug.plugin.loss import ContextType, LossScale

__all__ = ["ContextType", "LossScale"]
