"""swiftplug: fine-tune language models and sample from them, with every part a plugin that pip installs."""

__version__ = "0.1.0"
