"""What the tests of plugin authors call: `check_plugin` runs the contract of a kind for real, on a tiny model."""

from swiftplug.testing.check import ContractBroken, check_plugin

__all__ = ["ContractBroken", "check_plugin"]
